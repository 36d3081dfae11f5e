"""Access tokens: the RFC 9068 profile, signed with ES256."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from jose import JOSEError, jws, jwt

from services.auth.tokens.keys import KeyRing
from shared import tokens
from shared.identity import split_user
from shared.tokens import AUDIENCE, TYPE


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """One of our own tokens, its signature verified; it may have expired."""

    jti: str
    user_id: str
    expires_at: float


class Issuer:
    """:param ttl: seconds that a token lives."""

    def __init__(self, keys: KeyRing, *, issuer: str, ttl: int, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self.issuer = issuer
        self.ttl = ttl
        self._clock = clock

    def issue(self, *, user_id: str, client_id: str, scope: str, amr: str) -> str:
        """A compact JWS. ``scope`` is the service type, ``amr`` how the user was authenticated (RFC 8176)."""
        now = int(self._clock())
        key = self._keys.signing_key()
        claims = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": user_id,
            "client_id": client_id,
            "iat": now,
            "exp": now + self.ttl,
            "jti": uuid.uuid4().hex,
            "scope": scope,
            "amr": [amr],
        }
        token: str = jwt.encode(claims, key.private, algorithm="ES256", headers={"typ": TYPE, "kid": key.kid})
        return token

    def recognise(self, token: str) -> IssuedToken | None:
        """One of our tokens, expired or not, for RFC 7009; None for anything else."""
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
