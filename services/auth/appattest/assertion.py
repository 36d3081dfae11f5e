"""An assertion: an enrolled key's signature under the client's data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from services.auth.appattest import cbor
from services.auth.appattest.auth_data import ASSERTION_FLAGS, HEADER, Header, Launch, parse_launch
from services.auth.appattest.errors import Malformed, Rejected, Step, require
from services.auth.appattest.policy import Policy

#: An assertion has about 150 bytes; this leaves room for the allowed number of extensions at their greatest length.
MAX_ASSERTION_BYTES = 6 * 1024

_X962_POINT_BYTES = 65


@dataclass(frozen=True, slots=True)
class Assertion:
    """A verified assertion. Store ``counter``; the assertion is good only if that advances the stored one."""

    counter: int
    bundle_id: str
    launch: Launch


def verify_assertion(
    obj: bytes, *, client_data_hash: bytes, public_key_x962: bytes, last_counter: int, bundle_id: str, policy: Policy
) -> Assertion:
    """Verify an assertion made by ``DCAppAttestService.generateAssertion``.

    ``client_data_hash`` is SHA-256 of the signed bytes, ``public_key_x962`` the 65 byte point on record,
    ``last_counter`` the counter on record (0 after the attestation). The caller checks the
    content of the client data (challenge, audience, scope).

    :raises Malformed: it is not an assertion.
    :raises Rejected: a step failed.
    """
    signature, auth_data = _parse(obj)

    header = Header.parse(auth_data)
    require(header.rp_id_hash == policy.rp_id_hash(bundle_id), Step.RP_ID, "made for another app")
    require(header.flags in ASSERTION_FLAGS, Step.FLAGS, "flags that neither App Attest nor WebAuthn sets")
    launch = parse_launch(header, auth_data[HEADER:])
    require(header.counter > last_counter, Step.COUNTER, "not greater than the last one")

    nonce = hashlib.sha256(auth_data + client_data_hash).digest()
    try:
        # The nonce is the signed message, so ECDSA hashes it again.
        _stored_key(public_key_x962).verify(signature, nonce, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise Rejected(Step.SIGNATURE, "not by the key on record") from error
    return Assertion(header.counter, bundle_id, launch)


def _parse(obj: bytes) -> tuple[bytes, bytes]:
    if len(obj) > MAX_ASSERTION_BYTES:
        raise Malformed(Step.SIZE, "an assertion of more than 6 KiB")
    try:
        value = cbor.decode(obj)
    except cbor.NotStrictCbor as error:
        raise Malformed(Step.CBOR, str(error)) from error
    match value:
        case {"signature": bytes(signature), "authenticatorData": bytes(auth_data), **more}:
            require(not more, Step.STRUCTURE, "unknown members")
            return signature, auth_data
        case _:
            raise Rejected(Step.STRUCTURE, "not an assertion's members")


@lru_cache(maxsize=4096)
def _stored_key(point: bytes) -> ec.EllipticCurvePublicKey:
    require(len(point) == _X962_POINT_BYTES, Step.STORED_KEY, "not an uncompressed point")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as error:
        raise Rejected(Step.STORED_KEY, "not on P-256") from error
