"""Access tokens: the RFC 9068 profile, signed with ES256."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from jose import JOSEError, jws

from services.auth.errors import InvalidSubjectToken
from services.auth.tokens.key_ring import KeyRing
from shared.domain import tokens
from shared.domain.identity import split_user
from shared.domain.tokens import AUDIENCE, encode_segment


class AccessToken(msgspec.Struct, frozen=True):
    """A new access token: a compact JWS, and how many seconds it lives."""

    text: str
    expires_in: int


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token that auth issued, with a verified signature; it may have expired."""

    jti: str
    user_id: str
    expires_at: float


class Issuer:
    """The issuer of access tokens.

    :param ttl: seconds that a token lives, unless its credential ends before.
    """

    def __init__(self, keys: KeyRing, *, issuer: str, ttl: int, clock: Callable[[], float] = time.time) -> None:
        self._keys, self.issuer = keys, issuer
        self.ttl, self._clock = ttl, clock

    def issue(
        self,
        *,
        user_id: str,
        client_id: str,
        scope: str,
        amr: str,
        not_after: float | None = None,
        ttl: int | None = None,
        body_sha256: str | None = None,
    ) -> AccessToken:
        """A token for the user of a verified credential.

        :param scope: the service type.
        :param amr: how the user was authenticated (RFC 8176).
        :param not_after: when the credential itself expires, which the token does not outlive.
        :param ttl: seconds; None for the issuer's.
        :param body_sha256: hex digest of the one request body that the token is good for.
        :raises InvalidSubjectToken: the credential has no whole second left.
        :raises DependencyUnavailable: there is no signing key.
        """
        now = int(self._clock())
        expires_in = ttl or self.ttl
        if not_after is not None:
            expires_in = min(expires_in, int(not_after) - now)
            if expires_in <= 0:
                raise InvalidSubjectToken
        key = self._keys.signing_key()
        claims: dict[str, str | int | list[str]] = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": user_id,
            "client_id": client_id,
            "iat": now,
            "exp": now + expires_in,
            "jti": secrets.token_hex(16),
            "scope": scope,
            "amr": [amr],
        }
        if body_sha256 is not None:
            claims["body_sha256"] = body_sha256
        signed = f"{key.header}.{encode_segment(msgspec.json.encode(claims))}"
        return AccessToken(f"{signed}.{encode_segment(key.private.sign(signed.encode()))}", expires_in)

    def recognise(self, token: str) -> IssuedToken | None:
        """One of our tokens, expired or not, for RFC 7009; None for anything else.

        :raises DependencyUnavailable: there is no signing key to verify it with.
        """
        try:
            key = self._keys.find(tokens.header_of(token).kid)
            if key is None:
                return None
            jws.verify(token, key.private.public_key(), ["ES256"])
            claims = tokens.claims_of(token)
            split_user(claims.sub)
        except (JOSEError, ValueError):
            return None
        if claims.iss != self.issuer or claims.aud != AUDIENCE:
            return None
        return IssuedToken(claims.jti, claims.sub, float(claims.exp))
