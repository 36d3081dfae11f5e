"""Checks of a token that need no key and no request. Only tokens that pass cost more than this.

A token is 64 lower-case hexadecimal digits (opaque), or a JWT in the profile of RFC 9068 as FxA makes it: compact JWS,
RS256, of the media type ``application/at+jwt``. FxA writes that as ``at+JWT``.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.models import ClientId, Generation, JwsHeader, Time, Uid

MAX_JWT_CHARACTERS = 2048

#: FxA itself refuses upper case (mozilla/fxa, packages/fxa-auth-server/lib/oauth/validators.js: HEX_STRING).
_OPAQUE = re.compile(r"[0-9a-f]{64}")
_JWT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
# By the length modulo 4: the characters that may end a segment, so that no two segments encode the same bytes
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_LAST = (_ALPHABET, "", _ALPHABET[::16], _ALPHABET[::4])
_PADDING = ("", "", "==", "=")


class _Header(JwsHeader, frozen=True, kw_only=True):
    typ: str
    jku: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Claims(msgspec.Struct, frozen=True):
    """The claims of a JWT; trustworthy only after its signature is verified."""

    iss: str
    sub: Uid
    client_id: ClientId
    scope: Annotated[str, msgspec.Meta(pattern=r"^[\x20\x21\x23-\x5B\x5D-\x7E]*\Z")]
    exp: Time
    iat: Time
    nbf: Time = 0
    #: mozilla/fxa, packages/fxa-auth-server/lib/oauth/jwt_access_token.js: left out when FxA does not know it.
    generation: Generation | None = msgspec.field(name="fxa-generation", default=None)

    @property
    def scopes(self) -> tuple[str, ...]:
        return tuple(self.scope.split())


@dataclass(frozen=True, slots=True)
class OpaqueToken:
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class JwtToken:
    text: str = field(repr=False)
    kid: str
    claims: Claims


_header = msgspec.json.Decoder(_Header)
_claims = msgspec.json.Decoder(Claims)


def parse(token: str, *, issuer: str, now: float, skew: float) -> OpaqueToken | JwtToken:
    """The token, if it has the form of FxA's.

    :param skew: how far FxA's clock may be ahead of ours, in seconds. None is allowed for the expiry.
    :raises InvalidFxAToken: it has not, or a JWT's issuer, times, subject, client id or scope are wrong, which needs
        no key to see.
    """
    if _OPAQUE.fullmatch(token):
        return OpaqueToken(token)
    if len(token) > MAX_JWT_CHARACTERS:
        raise InvalidFxAToken("too long")
    segments = _JWT.fullmatch(token)
    if segments is None:
        raise InvalidFxAToken("neither opaque nor a JWT")
    kid = _kid(segments[1])
    claims: Claims = _read(_claims, segments[2], "claims")
    if segments[3][-1] not in _LAST[len(segments[3]) % 4]:
        raise InvalidFxAToken("not base64url")
    if claims.iss != issuer:
        raise InvalidFxAToken("another issuer")
    if claims.exp <= now:
        raise InvalidFxAToken("expired")
    if max(claims.iat, claims.nbf) - skew > now:
        raise InvalidFxAToken("not valid yet")
    return JwtToken(token, kid, claims)


@lru_cache(maxsize=64)  # all tokens of one key have the same header
def _kid(segment: str) -> str:
    header: _Header = _read(_header, segment, "header")
    if header.media_type != "at+jwt":
        raise InvalidFxAToken("not an access token")
    if header.extended:
        raise InvalidFxAToken("header has an extension or a key")
    return header.kid


def _read(decoder: msgspec.json.Decoder[Any], segment: str, part: str) -> Any:
    try:
        return decoder.decode(_decode(segment))
    except (ValueError, RecursionError) as error:
        raise InvalidFxAToken(f"{part} of a wrong shape") from error


def _decode(segment: str) -> bytes:
    """base64url without padding (RFC 7515 section 2). The alphabet has been checked."""
    if segment[-1] not in _LAST[len(segment) % 4]:
        raise InvalidFxAToken("not base64url")
    return base64.urlsafe_b64decode(segment + _PADDING[len(segment) % 4])
