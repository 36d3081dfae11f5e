"""The form of access tokens (RFC 9068) that auth and the gateway share, and how both read it.

Reading is strict, so that there is one text for each token: compact JWS, base64url without padding or other characters,
a header that says exactly what auth writes, no JSON member twice.
"""

from __future__ import annotations

import base64
import re
from typing import Final, Literal, TypeVar

import msgspec

from shared import strict_json
from shared.domain.identity import Credential

AUDIENCE = "mlpa-gateway"
#: Header fields with which a gateway makes itself known to auth, and tells it whose credential it exchanges.
EXCHANGE_KEY_HEADER = "X-MLPA-Exchange-Key"
CLIENT_HEADER = "X-MLPA-Client"
#: The names of RFC 8693 for the exchange, and for a token that it gives.
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  a name, not a secret
#: The ``error_description`` of an ``access_denied`` because the user is blocked, which gateways tell from others.
BLOCKED = "The user is blocked."
TYPE = "at+jwt"
#: Characters. Ours have about 700.
MAX_LENGTH = 2048
#: The longest life of a token in seconds, and of one for an install that Google Play vouches for: asking Google has a
#: daily quota.
LONGEST_LIFE, LONGEST_PLAY_LIFE = 3600, 24 * 3600
#: How far two machines' clocks may be apart, in seconds.
CLOCK_SKEW = 30
#: Seconds for which a key set is used that can't be refreshed: an attacker who blocks its source must not keep a
#: withdrawn key alive.
KEY_SET_KEPT = 24 * 3600

#: The 64 bytes of an ES256 signature leave four bits of their last character unused: these are 0.
_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]{85}[AQgw]")

_Part = TypeVar("_Part")


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly the header that auth writes: no ``crit``, ``jku``, ``x5u``, ``jwk`` or anything else."""

    alg: Literal["ES256"]
    typ: Literal["at+jwt"]
    kid: str


class Claims(msgspec.Struct, frozen=True):
    """The claims of a token, of the right types; the reader checks their values.

    ``body_sha256``: hex digest of the one request body that the token is good for.
    """

    iss: str
    aud: str
    sub: str
    client_id: str
    iat: int
    exp: int
    jti: str
    scope: str
    amr: tuple[str, ...]
    body_sha256: str | None = None


def longest_life(amr: tuple[str, ...]) -> int:
    """The longest life, in seconds, of a token whose user was authenticated so."""
    return LONGEST_PLAY_LIFE if amr == (Credential.PLAY,) else LONGEST_LIFE


def header_of(token: str) -> Header:
    """The unverified header of a token.

    :raises ValueError: it does not have the form of our tokens.
    """
    return _part(token, 1, Header)


def claims_of(token: str) -> Claims:
    """The claims of a token. Verify its signature first.

    :raises ValueError: they are not those of our tokens.
    """
    return _part(token, 2, Claims)


def _part(token: str, number: int, kind: type[_Part]) -> _Part:
    form = _COMPACT.fullmatch(token) if len(token) <= MAX_LENGTH else None
    if form is None:
        raise ValueError("not a compact JWS with an ES256 signature")
    return decode_segment(form[number], kind)


def decode_segment(segment: str, kind: type[_Part]) -> _Part:
    """A segment of any JWT as a typed object without duplicate members.

    :raises ValueError: it is malformed.
    """
    return strict_json.decode(decode_bytes(segment), kind)


def decode_bytes(segment: str) -> bytes:
    """The bytes of base64url without padding (RFC 7515 section 2).

    :raises ValueError: it is not base64url.
    """
    return base64.b64decode(segment + "=" * (-len(segment) % 4), altchars=b"-_", validate=True)


def encode_segment(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
