"""An attestation: Apple's statement that a key was made by a genuine app in a genuine device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.auth.appattest import cbor
from services.auth.appattest.auth_data import ATTESTATION_FLAGS, Credential, Header, Launch, parse_launch
from services.auth.appattest.chain import Certificate, check_path, check_signatures
from services.auth.appattest.errors import Malformed, Rejected, Step, require
from services.auth.appattest.policy import Environment, Policy

MAX_ATTESTATION_BYTES = 16 * 1024
MAX_CERTIFICATE_BYTES = 4 * 1024

NONCE_OID = x509.ObjectIdentifier("1.2.840.113635.100.8.2")
# SEQUENCE { [1] EXPLICIT OCTET STRING of 32 bytes }
NONCE_PREFIX = bytes.fromhex("3024a1220420")


@dataclass(frozen=True, slots=True)
class Attestation:
    """A verified attestation: the facts about a device that are stored.

    ``public_key_x962`` is the 65 byte uncompressed point. The receipt is kept as the client sent it: nothing in the
    object authenticates it.
    """

    key_id: bytes
    public_key_x962: bytes
    counter: int
    environment: Environment
    bundle_id: str
    receipt: bytes
    launch: Launch


@dataclass(frozen=True, slots=True)
class _Object:
    auth_data: bytes
    leaf: bytes
    intermediate: bytes
    receipt: bytes


def verify_attestation(
    obj: bytes, *, client_data_hash: bytes, key_id: bytes, bundle_id: str, policy: Policy, now: datetime
) -> Attestation:
    """Verify an attestation made by ``DCAppAttestService.attestKey``, at the time ``now`` (aware).

    ``client_data_hash`` is SHA-256 of the challenge, as the app passed it with the key. Cheap checks come first and
    the chain's two signatures last: they alone make the compared values trustworthy, so nothing is returned before.

    :raises Malformed: it is not an attestation.
    :raises Rejected: a step failed.
    """
    attestation = _parse(obj)

    header = Header.parse(attestation.auth_data)
    require(header.rp_id_hash == policy.rp_id_hash(bundle_id), Step.RP_ID, "made for another app")
    require(header.flags in ATTESTATION_FLAGS, Step.FLAGS, "flags that App Attest doesn't set")
    require(header.counter == 0, Step.COUNTER, "not 0")
    credential, tail = Credential.parse(attestation.auth_data)
    require(credential.aaguid == policy.aaguid, Step.AAGUID, "not of this environment")
    require(credential.credential_id == key_id, Step.CREDENTIAL_ID, "not the key id")
    launch = parse_launch(header, tail)

    leaf = Certificate.parse(attestation.leaf)
    intermediate = Certificate.parse(attestation.intermediate)
    anchors = check_path(leaf, intermediate, policy.roots, now)

    nonce = hashlib.sha256(attestation.auth_data + client_data_hash).digest()
    require(leaf.raw_extension(NONCE_OID) == NONCE_PREFIX + nonce, Step.NONCE, "not the one of this challenge")
    point = _p256_point(leaf)
    require(hashlib.sha256(point).digest() == key_id, Step.KEY_ID, "not the digest of the certified key")
    require(point == credential.public_key_x962, Step.PUBLIC_KEY, "not the certified key")

    check_signatures(leaf, intermediate, anchors)
    return Attestation(
        key_id=key_id,
        public_key_x962=point,
        counter=header.counter,
        environment=policy.environment,
        bundle_id=bundle_id,
        receipt=attestation.receipt,
        launch=launch,
    )


def _parse(obj: bytes) -> _Object:
    if len(obj) > MAX_ATTESTATION_BYTES:
        raise Malformed(Step.SIZE, "an attestation of more than 16 KiB")
    try:
        value = cbor.decode(obj)
    except cbor.NotStrictCbor as error:
        raise Malformed(Step.CBOR, str(error)) from error
    match value:
        case {
            "fmt": str(fmt),
            "attStmt": {"x5c": list(x5c), "receipt": bytes(receipt), **more_statement},
            "authData": bytes(auth_data),
            **more,
        }:
            require(not more and not more_statement, Step.STRUCTURE, "unknown members")
        case _:
            raise Rejected(Step.STRUCTURE, "not an attestation's members")
    require(fmt == "apple-appattest", Step.FMT, "another format")
    match x5c:
        case [bytes(leaf), bytes(intermediate)]:
            require(max(len(leaf), len(intermediate)) <= MAX_CERTIFICATE_BYTES, Step.X5C, "too large")
        case _:
            raise Rejected(Step.X5C, "not two certificates")
    return _Object(auth_data=auth_data, leaf=leaf, intermediate=intermediate, receipt=receipt)


def _p256_point(leaf: Certificate) -> bytes:
    key = leaf.public_key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Rejected(Step.LEAF_KEY, "not on P-256")
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
