"""Authenticator data: the bytes that an attestation certifies and an assertion signs (WebAuthn section 6.1).

    32 RP ID hash | 1 flags | 4 counter | attestation only: 16 aaguid, 2 length, credential id, COSE key |
    iOS 27: a map of extensions

App Attest departs from WebAuthn in two points: an assertion has the flag 0x40 although no credential follows,
and iOS 27 appends its extensions with or without the flag 0x80. Apple specifies no value for the flags of an
assertion, so those that WebAuthn would set are accepted too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from services.auth.appattest import cbor
from services.auth.appattest.errors import Rejected, Step, require

ATTESTED = 0x40
EXTENDED = 0x80

MAX_BUNDLE_VERSION = 64
MAX_EXTENSIONS = 16
MAX_EXTENSION_NAME = 64
MAX_EXTENSION_BYTES = 256

ATTESTATION_FLAGS = (ATTESTED, ATTESTED | EXTENDED)
ASSERTION_FLAGS = (0, *ATTESTATION_FLAGS, EXTENDED)

#: Bytes of the header; those of an assertion have only extensions after it.
HEADER = 37
_AAGUID_END = HEADER + 16
_CREDENTIAL_ID = _AAGUID_END + 2

# RFC 9053: key type EC2, algorithm ES256, curve P-256, and the coordinates (-2 and -3).
_COSE_ES256 = {1: 2, 3: -7, -1: 1}
_COORDINATE = 32


@dataclass(frozen=True, slots=True)
class Header:
    """The fields that all authenticator data begins with."""

    rp_id_hash: bytes
    flags: int
    counter: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        require(len(data) >= HEADER, Step.AUTH_DATA, "shorter than its header")
        return cls(rp_id_hash=data[:32], flags=data[32], counter=int.from_bytes(data[33:HEADER], "big"))


@dataclass(frozen=True, slots=True)
class Launch:
    """How the app was launched, as iOS 27 and later report it; both are None before.

    ``validation_category`` is Apple's number for how the app was distributed (2 TestFlight, 3 development,
    4 App Store...). ``unknown`` counts the other extensions, which are ignored; ``incomplete`` says that one of the
    two was missing.
    """

    bundle_version: str | None = None
    validation_category: int | None = None
    unknown: int = 0
    incomplete: bool = False


@dataclass(frozen=True, slots=True)
class Credential:
    """The credential that an attestation certifies."""

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
            aaguid=data[HEADER:_AAGUID_END], credential_id=data[_CREDENTIAL_ID:key_start], public_key_x962=public_key
        )
        return credential, data[key_start + end :]


def parse_launch(header: Header, tail: bytes) -> Launch:
    """The extensions in ``tail``. Nothing else may follow the header or the credential; before iOS 27 nothing does.

    Apple may add extensions or leave one out, and no device should be refused for that: unknown extensions are
    ignored, within bounds. Known ones must have exactly their form.
    """
    if not tail:
        require(not header.flags & EXTENDED, Step.EXTENSIONS, "announced, but missing")
        return Launch()
    try:
        extensions = cbor.split_map(
            tail, max_entries=MAX_EXTENSIONS, max_key=MAX_EXTENSION_NAME, max_value=MAX_EXTENSION_BYTES
        )
        version = _known(extensions, "apple_bundle_version_01")
        category = _known(extensions, "apple_validation_category_01")
    except cbor.NotStrictCbor as error:
        raise Rejected(Step.EXTENSIONS, str(error)) from error
    return Launch(
        bundle_version=None if version is None else _bundle_version(version),
        validation_category=None if category is None else _validation_category(category),
        unknown=len(extensions),
        incomplete=version is None or category is None,
    )


def _known(extensions: dict[str, bytes], name: str) -> object:
    """Remove a known extension and return its value; None if it's missing."""
    encoded = extensions.pop(name, None)
    return None if encoded is None else cbor.decode(encoded)


def _bundle_version(value: object) -> str:
    good = isinstance(value, str) and 0 < len(value) <= MAX_BUNDLE_VERSION and value.isprintable()
    require(good, Step.EXTENSIONS, "bundle version")
    return str(value)


def _validation_category(value: object) -> int:
    if not isinstance(value, bytes) or len(value) != 4:
        raise Rejected(Step.EXTENSIONS, "validation category")
    return int.from_bytes(value, "little")


def _cose_key(data: bytes) -> tuple[bytes, int]:
    """The X9.62 point of the COSE key that ``data`` begins with, and where it ends."""
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
