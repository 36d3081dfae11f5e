"""Authenticator data: the bytes that an attestation certifies and an assertion signs (WebAuthn section 6.1).

    32 RP ID hash | 1 flags | 4 counter | attestation only: 16 aaguid, 2 length, credential id, COSE key |
    iOS 27: a map of extensions

App Attest departs from WebAuthn in two points: an assertion has the flag 0x40 although no credential follows,
and iOS 27 appends its extensions with or without the flag 0x80.
"""

from dataclasses import dataclass
from typing import Self

from services.auth.appattest import cbor
from services.auth.appattest.errors import Rejected, Step, require

ATTESTED = 0x40
EXTENDED = 0x80

MAX_BUNDLE_VERSION = 64

_HEADER = 37
_AAGUID_END = _HEADER + 16
_CREDENTIAL_ID = _AAGUID_END + 2

# RFC 9053: key type EC2, algorithm ES256, curve P-256, and the coordinates (-2 and -3).
_COSE_ES256 = {1: 2, 3: -7, -1: 1}
_COORDINATE = 32


@dataclass(frozen=True, slots=True)
class Header:
    """What all authenticator data begins with."""

    rp_id_hash: bytes
    flags: int
    counter: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        require(len(data) >= _HEADER, Step.AUTH_DATA, "shorter than its header")
        return cls(rp_id_hash=data[:32], flags=data[32], counter=int.from_bytes(data[33:_HEADER], "big"))


@dataclass(frozen=True, slots=True)
class Launch:
    """How the app was launched, as iOS 27 and later tell; both None before.

    `validation_category` is Apple's number for how the app was distributed (2 TestFlight, 3 development,
    4 App Store...).
    """

    bundle_version: str | None = None
    validation_category: int | None = None


@dataclass(frozen=True, slots=True)
class Credential:
    """The credential that an attestation is about."""

    aaguid: bytes
    credential_id: bytes
    public_key_x962: bytes

    @classmethod
    def parse(cls, data: bytes) -> tuple[Self, bytes]:
        """The credential in the authenticator data of an attestation, and the bytes after it."""
        length = int.from_bytes(data[_AAGUID_END:_CREDENTIAL_ID], "big")
        key_start = _CREDENTIAL_ID + length
        require(len(data) > key_start, Step.AUTH_DATA, "shorter than its credential")
        public_key, end = _cose_key(data[key_start:])
        credential = cls(
            aaguid=data[_HEADER:_AAGUID_END],
            credential_id=data[_CREDENTIAL_ID:key_start],
            public_key_x962=public_key,
        )
        return credential, data[key_start + end :]


def assertion_tail(data: bytes) -> bytes:
    """The bytes after the header, where an assertion has no credential."""
    return data[_HEADER:]


def check_flags(header: Header) -> None:
    require(header.flags in (ATTESTED, ATTESTED | EXTENDED), Step.FLAGS, "other flags than App Attest sets")


def parse_launch(header: Header, tail: bytes) -> Launch:
    """The extensions in `tail`, which is all that may follow; nothing at all before iOS 27."""
    if not tail:
        require(not header.flags & EXTENDED, Step.EXTENSIONS, "announced, but missing")
        return Launch()
    try:
        extensions = cbor.decode(tail)
    except cbor.NotStrictCbor as error:
        raise Rejected(Step.EXTENSIONS, str(error)) from error
    match extensions:
        case {
            "apple_bundle_version_01": str(version),
            "apple_validation_category_01": bytes(category),
            **others,
        }:
            require(not others, Step.EXTENSIONS, "an unknown extension")
        case _:
            raise Rejected(Step.EXTENSIONS, "not the two that Apple defines")
    require(0 < len(version) <= MAX_BUNDLE_VERSION and version.isprintable(), Step.EXTENSIONS, "bundle version")
    require(len(category) == 4, Step.EXTENSIONS, "validation category")
    return Launch(bundle_version=version, validation_category=int.from_bytes(category, "little"))


def _cose_key(data: bytes) -> tuple[bytes, int]:
    """The X9.62 point of the COSE key that `data` begins with, and where it ends."""
    try:
        key, end = cbor.decode_first(data)
    except cbor.NotStrictCbor as error:
        raise Rejected(Step.COSE_KEY, str(error)) from error
    match key:
        case {-2: bytes(x), -3: bytes(y), **others}:
            require(others == _COSE_ES256, Step.COSE_KEY, "not an ES256 key")
        case _:
            raise Rejected(Step.COSE_KEY, "not a point")
    require(len(x) == len(y) == _COORDINATE, Step.COSE_KEY, "not coordinates of P-256")
    return b"\x04" + x + y, end
