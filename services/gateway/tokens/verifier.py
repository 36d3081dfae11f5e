"""Verification of access tokens (RFC 9068 section 4, RFC 8725), each signature once."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from jose import JOSEError, jws
from jose.backends.base import Key

from services.gateway.errors import InvalidToken
from services.gateway.tokens.models import Principal
from shared.domain import tokens
from shared.domain.identity import split_user
from shared.domain.service_types import ServiceTypes
from shared.domain.tokens import AUDIENCE, CLOCK_SKEW, MAX_LENGTH
from shared.errors import DependencyUnavailable
from shared.service.keyset import KeySet
from shared.telemetry.metrics import Registry

_CACHE_SIZE = 50_000


class _Verified(NamedTuple):
    principal: Principal
    kid: str
    key: Key


class TokenVerifier:
    """A verifier that remembers verified tokens by digest, until their ``exp`` or until auth withdraws their key."""

    def __init__(
        self,
        keys: KeySet,
        service_types: ServiceTypes,
        registry: Registry,
        *,
        issuer: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._rows = service_types.by_name
        self._issuer, self._clock = issuer, clock
        self._cache: OrderedDict[bytes, _Verified] = OrderedDict()
        self._latency = registry.histogram(
            "token_validation_latency_seconds",
            "Time to validate an access token.",
            ("result", "source"),
            buckets=(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1, 1.0),
        )
        self._latency.preset_all(["success", "invalid", "unavailable"], ["cache", "local"])

    async def verify(self, token: str) -> Principal:
        """The bearer of a token.

        :raises InvalidToken: malformed, forged, expired, not for us, of an unknown service type.
        :raises DependencyUnavailable: its key isn't known here, and auth could not be asked.
        """
        started = time.perf_counter()
        result, source = "invalid", "local"
        try:
            if len(token) > MAX_LENGTH:
                raise InvalidToken
            digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
            verified = self._cache.get(digest)
            if verified is not None and self._keys.holds(verified.kid, verified.key):
                source = "cache"
                if verified.principal.expires_at <= self._clock():
                    del self._cache[digest]
                    raise InvalidToken("The access token has expired.")
                row = self._rows[verified.principal.service_type.name]
                if row is not verified.principal.service_type:  # the table has changed since
                    verified = verified._replace(principal=replace(verified.principal, service_type=row))
                    self._cache[digest] = verified
            else:
                verified = await self._verify(token)
                self._cache[digest] = verified
                if len(self._cache) > _CACHE_SIZE:
                    self._cache.popitem(last=False)
            result = "success"
        except DependencyUnavailable:
            result = "unavailable"
            raise
        finally:
            self._latency.observe(time.perf_counter() - started, result, source)
        return verified.principal

    async def _verify(self, token: str) -> _Verified:
        try:
            kid = tokens.header_of(token).kid
            key = await self._keys.get(kid)
            if key is None:
                raise InvalidToken
            jws.verify(token, key, ["ES256"])
            claims = tokens.claims_of(token)
        except (JOSEError, ValueError) as error:
            raise InvalidToken from error
        now = self._clock()
        if claims.exp <= now:
            raise InvalidToken("The access token has expired.")
        row = self._rows.get(claims.scope)
        if (
            claims.iss != self._issuer
            or claims.aud != AUDIENCE
            or claims.iat > now + CLOCK_SKEW
            or claims.exp - claims.iat > tokens.longest_life(claims.amr) + CLOCK_SKEW
            or not claims.jti
            or len(claims.jti) > 64
            or row is None
        ):
            raise InvalidToken
        try:
            identity, service_type = split_user(claims.sub)
        except ValueError as error:
            raise InvalidToken from error
        if service_type != row.name:
            raise InvalidToken
        principal = Principal(claims.sub, identity, row, claims.jti, float(claims.exp), claims.body_sha256, claims.iat)
        return _Verified(principal, kid, key)
