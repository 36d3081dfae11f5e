"""Attestations and assertions of any shape, consistent but for what a test changes.

Each field of a forge is one thing that can be different; everything that depends on it (the nonce, the leaf, the
signatures) is made again, so that only the step that looks at this very thing can object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from services.auth.appattest.assertion import Assertion, verify_assertion
from services.auth.appattest.attestation import Attestation, verify_attestation
from services.auth.appattest.policy import Policy
from services.local import device
from services.local.pki import Authority, Extension, Hash, Pki, ca_extensions, leaf_extensions, nonce_extension

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
TEAM = "A1B2C3D4E5"
BUNDLE = "org.example.app"
PRODUCTION = b"appattest" + bytes(7)
CHALLENGE = b"0f" * 32

PKI = Pki.create(NOW)
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
DAY = timedelta(days=1)


def same(value: Any) -> Any:
    return value


def cose_members(key: ec.EllipticCurvePrivateKey = KEY) -> dict[int, Any]:
    members: dict[int, Any] = cbor2.loads(device.cose_key(device.x962(key.public_key())))
    return members


def key_id(key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    return hashlib.sha256(device.x962(key.public_key())).digest()


def policy(**changes: Any) -> Policy:
    members: dict[str, Any] = {
        "team_id": TEAM,
        "bundle_ids": frozenset({BUNDLE, "org.example.other"}),
        "environment": "production",
        "roots": (PKI.root.certificate,),
    }
    return Policy(**{**members, **changes})


@dataclass(frozen=True)
class AttestationForge:
    # The authenticator data
    app_id: str = f"{TEAM}.{BUNDLE}"
    flags: int = 0x40
    counter: int = 0
    aaguid: bytes = PRODUCTION
    credential_id: bytes = key_id()
    cose: object = field(default_factory=cose_members)
    cose_bytes: Callable[[bytes], bytes] = same
    tail: bytes = b""
    auth_data: Callable[[bytes], bytes] = same

    # The leaf
    leaf_key: CertificateIssuerPrivateKeyTypes = KEY
    leaf_period: tuple[datetime, datetime] = (NOW - DAY, NOW + DAY)
    leaf_base: Sequence[Extension] = field(default_factory=leaf_extensions)
    leaf_nonce: Callable[[bytes], Sequence[Extension]] = lambda nonce: [nonce_extension(nonce)]
    leaf_algorithm: Hash | None = None
    leaf_signer: Authority | None = None

    # The intermediate; None is the one of the PKI
    intermediate: Authority | None = None

    # The object
    certificates: Callable[[list[bytes]], object] = same
    statement: Callable[[dict[str, Any]], object] = same
    members: Callable[[dict[str, Any]], object] = same
    obj: Callable[[bytes], bytes] = same

    # What it's verified with
    client_data_hash: bytes = hashlib.sha256(CHALLENGE).digest()
    key_id: bytes = key_id()
    bundle_id: str = BUNDLE
    policy: Policy = field(default_factory=policy)
    now: datetime = NOW

    def build(self) -> bytes:
        data = self.auth_data(
            device.auth_data(
                hashlib.sha256(self.app_id.encode()).digest(),
                counter=self.counter,
                flags=self.flags,
                credential=device.credential(self.aaguid, self.credential_id, self.cose_bytes(cbor2.dumps(self.cose))),
                extensions=self.tail,
            )
        )
        nonce = hashlib.sha256(data + hashlib.sha256(CHALLENGE).digest()).digest()
        intermediate = self.intermediate or PKI.intermediate
        leaf = (self.leaf_signer or intermediate).issue(
            "leaf",
            self.leaf_key.public_key(),
            not_before=self.leaf_period[0],
            not_after=self.leaf_period[1],
            extensions=[*self.leaf_base, *self.leaf_nonce(nonce)],
            algorithm=self.leaf_algorithm,
        )
        x5c = [certificate.public_bytes(Encoding.DER) for certificate in (leaf, intermediate.certificate)]
        statement = self.statement({"x5c": self.certificates(x5c), "receipt": b"receipt"})
        return self.obj(cbor2.dumps(self.members({"fmt": "apple-appattest", "attStmt": statement, "authData": data})))

    def verify(self) -> Attestation:
        return verify_attestation(
            self.build(),
            client_data_hash=self.client_data_hash,
            key_id=self.key_id,
            bundle_id=self.bundle_id,
            policy=self.policy,
            now=self.now,
        )


@dataclass(frozen=True)
class AssertionForge:
    app_id: str = f"{TEAM}.{BUNDLE}"
    flags: int = 0x40
    counter: int = 8
    tail: bytes = b""
    auth_data: Callable[[bytes], bytes] = same
    key: ec.EllipticCurvePrivateKey = KEY
    signature: Callable[[bytes], bytes] = same
    hashed_once: bool = False
    members: Callable[[dict[str, Any]], object] = same
    obj: Callable[[bytes], bytes] = same

    client_data_hash: bytes = hashlib.sha256(b"{}").digest()
    public_key_x962: bytes = device.x962(KEY.public_key())
    last_counter: int = 7
    bundle_id: str = BUNDLE
    policy: Policy = field(default_factory=policy)

    def build(self) -> bytes:
        data = self.auth_data(
            device.auth_data(
                hashlib.sha256(self.app_id.encode()).digest(),
                counter=self.counter,
                flags=self.flags,
                extensions=self.tail,
            )
        )
        composite = data + hashlib.sha256(b"{}").digest()
        message = composite if self.hashed_once else hashlib.sha256(composite).digest()
        signature = self.signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return self.obj(cbor2.dumps(self.members({"signature": signature, "authenticatorData": data})))

    def verify(self) -> Assertion:
        return verify_assertion(
            self.build(),
            client_data_hash=self.client_data_hash,
            public_key_x962=self.public_key_x962,
            last_counter=self.last_counter,
            bundle_id=self.bundle_id,
            policy=self.policy,
        )


def intermediate(
    *,
    signer: Authority = PKI.root,
    key: Any = None,
    period: tuple[datetime, datetime] = (NOW - DAY, NOW + 365 * DAY),
    extensions: Sequence[Extension] | None = None,
    algorithm: Hash | None = None,
    subject: str = "intermediate",
    certified_key: Any = None,
) -> Authority:
    """An intermediate of any shape; ``certified_key`` is a key other than the one that it signs with."""
    key = key or ec.generate_private_key(ec.SECP384R1())
    certificate = signer.issue(
        subject,
        (certified_key or key).public_key(),
        not_before=period[0],
        not_after=period[1],
        extensions=ca_extensions(path_length=0) if extensions is None else extensions,
        algorithm=algorithm or hashes.SHA384(),
    )
    return Authority(certificate, key)


def replaced(offset: int, new: bytes) -> Callable[[bytes], bytes]:
    """A change of bytes in place."""
    return lambda old: old[:offset] + new + old[offset + len(new) :]
