"""A simulated App Attest device: for local runs and tests.

It does what the Secure Enclave and Apple's attestation service do together, under the root of a test PKI, so its
objects have the shape of real ones and verify against that root alone.

What it imitates, with the source ("recorded": objects of real devices, which the tests of the verifier read where they
are at hand; "Apple": "Validating apps that connect to your server"):

    attestation {fmt, attStmt {x5c, receipt}, authData},   recorded; Apple's steps 1 to 9
    members in this order
    authData of 164 bytes, flags 0x40, counter 0           recorded
    aaguid of each environment                             Apple, step 8
    COSE key: EC2, ES256, P-256, x, y                      recorded; RFC 9053
    nonce = SHA-256(authData || SHA-256(challenge))        Apple, steps 2 to 4
    assertion {signature, authenticatorData}, 37 bytes,    recorded
    flags 0x40, the counter begins at 1
    signature: ECDSA with SHA-256 over the nonce           recorded; Apple's assertion, steps 1 to 3
    iOS 27: a map of apple_bundle_version_01 (text) and    Apple's sample of 2026: 226 bytes, flags still 0x40
    apple_validation_category_01 (4 bytes, little-endian)

    the receipt                                            ``services/local/receipts.py``

Where it differs on purpose: a key may be attested again, which iOS refuses; flags of an assertion and further
extensions can be chosen.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self

import cbor2
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.local import receipts
from services.local.pki import Pki, key_to_pem, load_key

Environment = Literal["production", "development"]

AAGUIDS: dict[Environment, bytes] = {"production": b"appattest" + bytes(7), "development": b"appattestdevelop"}
ATTESTED_CREDENTIAL = 0x40


@dataclass(slots=True)
class Device:
    """One app on one device, with its key and counter, under the authority that certifies it.

    With ``bundle_version`` and ``validation_category`` it's a device on iOS 27 or later, which reports both.
    ``phone`` names the device, which may have other keys: Apple counts them.
    ``further`` are extensions that Apple doesn't define yet; ``assertion_flags`` those of its assertions'
    authenticator data.
    """

    pki: Pki = field(repr=False)
    team_id: str
    bundle_id: str
    environment: Environment = "development"
    bundle_version: str | None = None
    validation_category: int | None = None
    counter: int = 0
    further: dict[str, Any] = field(default_factory=dict)
    assertion_flags: int = ATTESTED_CREDENTIAL
    phone: str = field(default_factory=lambda: secrets.token_hex(16))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)

    @property
    def public_key_x962(self) -> bytes:
        return x962(self.key.public_key())

    @property
    def key_id(self) -> bytes:
        return hashlib.sha256(self.public_key_x962).digest()

    @property
    def key_id_b64(self) -> str:
        """The key id as iOS gives it to an app: standard base64."""
        return base64.b64encode(self.key_id).decode()

    def attest(self, challenge: str | bytes) -> bytes:
        """The attestation object for a challenge as the server sent it (its hex characters)."""
        challenge = challenge.encode() if isinstance(challenge, str) else challenge
        data = auth_data(
            self.rp_id_hash,
            counter=0,
            credential=credential(AAGUIDS[self.environment], self.key_id, cose_key(self.public_key_x962)),
            extensions=self._extensions(),
        )
        nonce = hashlib.sha256(data + hashlib.sha256(challenge).digest()).digest()
        now = datetime.now(UTC)
        leaf = self.pki.certify(self.key.public_key(), key_id=self.key_id, nonce=nonce, now=now)
        x5c = [
            certificate.public_bytes(serialization.Encoding.DER)
            for certificate in (leaf, self.pki.intermediate.certificate)
        ]
        statement = {"x5c": x5c, "receipt": self.receipt(x5c[0], challenge, now)}
        return cbor2.dumps({"fmt": "apple-appattest", "attStmt": statement, "authData": data})

    def receipt(self, certificate: bytes, challenge: bytes, now: datetime) -> bytes:
        """The receipt that comes with an attestation."""
        fields = receipts.attest_fields(
            app_id=f"{self.team_id}.{self.bundle_id}",
            certificate=certificate,
            client_hash=hashlib.sha256(challenge).digest(),
            token=self.phone.encode(),
            production=self.environment == "production",
            now=now,
        )
        return receipts.sign(fields, self.pki, receipts.signer(self.pki, now))

    def assert_(self, client_data: bytes) -> bytes:
        """The assertion object for ``client_data``; each one advances the counter."""
        self.counter += 1
        data = auth_data(
            self.rp_id_hash, counter=self.counter, flags=self.assertion_flags, extensions=self._extensions()
        )
        nonce = hashlib.sha256(data + hashlib.sha256(client_data).digest()).digest()
        signature = self.key.sign(nonce, ec.ECDSA(hashes.SHA256()))
        return cbor2.dumps({"signature": signature, "authenticatorData": data})

    @property
    def rp_id_hash(self) -> bytes:
        return hashlib.sha256(f"{self.team_id}.{self.bundle_id}".encode()).digest()

    def _extensions(self) -> bytes:
        return launch_extensions(self.bundle_version, self.validation_category, self.further)

    def to_json(self) -> str:
        """All members, including the private keys."""
        members = {
            "team_id": self.team_id,
            "bundle_id": self.bundle_id,
            "environment": self.environment,
            "bundle_version": self.bundle_version,
            "validation_category": self.validation_category,
            "counter": self.counter,
            "further": self.further,
            "assertion_flags": self.assertion_flags,
            "phone": self.phone,
            "key": key_to_pem(self.key),
            "pki": self.pki.to_members(),
        }
        return json.dumps(members, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        members = json.loads(text)
        key, pki = load_key(members.pop("key")), Pki.from_members(members.pop("pki"))
        return cls(pki=pki, key=key, **members)


def x962(public_key: ec.EllipticCurvePublicKey) -> bytes:
    """The 65 byte uncompressed point."""
    return public_key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def cose_key(point: bytes) -> bytes:
    """The COSE key (EC2, ES256, P-256) of a 65 byte point."""
    return cbor2.dumps({1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]})


def credential(aaguid: bytes, credential_id: bytes, key: bytes) -> bytes:
    """Attested credential data, WebAuthn section 6.5.1."""
    return aaguid + len(credential_id).to_bytes(2, "big") + credential_id + key


def launch_extensions(
    bundle_version: str | None, validation_category: int | None, further: Mapping[str, Any] | None = None
) -> bytes:
    """The extensions of iOS 27, and further ones; nothing when there are none."""
    extensions: dict[str, Any] = {}
    if bundle_version is not None:
        extensions["apple_bundle_version_01"] = bundle_version
    if validation_category is not None:
        extensions["apple_validation_category_01"] = validation_category.to_bytes(4, "little")
    extensions.update(further or {})
    return cbor2.dumps(extensions) if extensions else b""


def auth_data(
    rp_id_hash: bytes,
    *,
    counter: int,
    flags: int = ATTESTED_CREDENTIAL,
    credential: bytes = b"",
    extensions: bytes = b"",
) -> bytes:
    """Authenticator data, WebAuthn section 6.1."""
    return rp_id_hash + bytes([flags]) + counter.to_bytes(4, "big") + credential + extensions
