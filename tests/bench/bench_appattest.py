"""The cost of verifying App Attest objects, beside the cryptography that it needs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from services.auth.appattest.assertion import verify_assertion
from services.auth.appattest.attestation import verify_attestation
from services.local import device
from tests.bench.figures import ROUNDS, Row, beside, turns
from tests.services.auth.appattest.forge import PKI, AssertionForge, AttestationForge

CALLS = 20
TAIL = device.launch_extensions("1", 4)


async def run() -> list[Row]:
    """Rows of (name, figure). The raw operations are to load each key from its point and to check its signature."""
    attestation, assertion = AttestationForge(tail=TAIL), AssertionForge(tail=TAIL)
    return [
        await _row("an attestation", _attestation(attestation), _chain_signatures(attestation)),
        await _row("an assertion", _assertion(assertion), _assertion_signature(assertion)),
    ]


async def _row(name: str, verify: Callable[[], object], raw: Callable[[], object]) -> Row:
    whole, part = await turns(_cpu_seconds(verify), _cpu_seconds(raw), rounds=3 * ROUNDS, warm_up=1)
    return f"{name}, beside its raw cryptography", beside(whole, part, "us CPU", 1e6, goal="at most 2x")


def _cpu_seconds(work: Callable[[], object]) -> Callable[[], Awaitable[float]]:
    """Measures the CPU time of one call."""

    async def measure() -> float:
        start = time.process_time()
        for _ in range(CALLS):
            work()
        return (time.process_time() - start) / CALLS

    return measure


def _attestation(forge: AttestationForge) -> Callable[[], object]:
    obj = forge.build()
    return lambda: verify_attestation(
        obj,
        client_data_hash=forge.client_data_hash,
        key_id=forge.key_id,
        bundle_id=forge.bundle_id,
        policy=forge.policy,
        now=forge.now,
    )


def _assertion(forge: AssertionForge) -> Callable[[], object]:
    obj = forge.build()
    return lambda: verify_assertion(
        obj,
        client_data_hash=forge.client_data_hash,
        public_key_x962=forge.public_key_x962,
        last_counter=forge.last_counter,
        bundle_id=forge.bundle_id,
        policy=forge.policy,
    )


def _chain_signatures(forge: AttestationForge) -> Callable[[], object]:
    """The two signatures on P-384: under the leaf and under the intermediate."""
    leaf, intermediate = map(x509.load_der_x509_certificate, cbor2.loads(forge.build())["attStmt"]["x5c"])
    points = [_point(intermediate.public_key()), _point(PKI.root.certificate.public_key())]
    signed = [(certificate.signature, certificate.tbs_certificate_bytes) for certificate in (leaf, intermediate)]
    algorithms = [ec.ECDSA(hashes.SHA256()), ec.ECDSA(hashes.SHA384())]

    def check() -> None:
        for point, (signature, data), algorithm in zip(points, signed, algorithms, strict=True):
            EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point).verify(signature, data, algorithm)

    return check


def _assertion_signature(forge: AssertionForge) -> Callable[[], object]:
    """The one signature on P-256."""
    members = cbor2.loads(forge.build())
    nonce = hashlib.sha256(members["authenticatorData"] + forge.client_data_hash).digest()

    def check() -> None:
        key = EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), forge.public_key_x962)
        key.verify(members["signature"], nonce, ec.ECDSA(hashes.SHA256()))

    return check


def _point(key: object) -> bytes:
    assert isinstance(key, EllipticCurvePublicKey)
    return device.x962(key)
