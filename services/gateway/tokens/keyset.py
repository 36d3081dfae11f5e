"""Auth's public keys, by ``kid``: found through the issuer's metadata, kept through an outage of auth for a day."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
from jose import JOSEError, jwk

from shared import background, logs
from shared.errors import DependencyUnavailable
from shared.metrics import Registry
from shared.tokens import KEY_SET_KEPT

#: How often the key set is read again, and how often at the most for a kid that it lacks, in seconds.
REFRESH = 60.0
RETRY = 2.0
UNKNOWN_KID = 5.0
_TIMEOUT = aiohttp.ClientTimeout(total=2)
_MAX_BYTES = 256 * 1024
_MAX_KEYS = 50

_log = logs.logger("keyset")


class _Jwk(msgspec.Struct):
    kty: str
    kid: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""
    alg: str = "ES256"
    use: str = "sig"


class _Jwks(msgspec.Struct):
    keys: list[_Jwk]


class _Metadata(msgspec.Struct):
    issuer: str
    jwks_uri: str


class KeySet:
    """The keys that may have signed a token. ``on_change`` is told the kids that still mean the same after a change."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        registry: Registry,
        *,
        issuer: str,
        jwks_url: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._registry = registry
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._clock = clock
        self._jwks: dict[str, _Jwk] = {}
        self._keys: dict[str, Any] = {}
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None
        self.on_change: Callable[[frozenset[str]], None] | None = None
        self._age = registry.gauge("jwks_age_seconds", "Age of the key set that tokens are checked with.")
        self._errors = registry.counter("jwks_fetches_total", "Readings of auth's key set.", ("result",))
        self._errors.preset_all(["success", "error"])

    @property
    def ready(self) -> bool:
        self._drop_old()
        return bool(self._keys)

    @property
    def failed(self) -> bool:
        """Whether the last reading failed: auth can't be reached."""
        return self._failed

    async def get(self, kid: str) -> Any | None:
        """The key of a kid; None when auth doesn't have it.

        :raises DependencyUnavailable: it isn't known here, and auth could not be asked.
        """
        self._drop_old()
        key = self._keys.get(kid)
        if key is not None:
            return key
        if self._clock() - self._tried >= UNKNOWN_KID or (self._fetching is not None and not self._fetching.done()):
            await self.refresh()
            key = self._keys.get(kid)
        if key is None and (self._failed or not self._keys):
            raise DependencyUnavailable("auth")
        return key

    async def refresh(self) -> None:
        """Read the key set; whoever asks while it is being read waits for the same reading. Never raises."""
        if self._fetching is None or self._fetching.done():
            self._tried = self._clock()
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            url = self._jwks_url or await self._discover()
            jwks, found = _usable(msgspec.json.decode(await self._read(url), type=_Jwks))
            if not found:
                raise ValueError("the key set has no usable key")
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError, ValueError, RecursionError) as error:
            self._failed = True
            self._errors.inc("error")
            _log.warning("key_set_not_read", error=type(error).__name__)
            return
        self._failed = False
        self._errors.inc("success")
        self._fetched = self._clock()
        before, self._jwks, self._keys = self._jwks, jwks, found
        if before != jwks and self.on_change is not None:
            self.on_change(frozenset(kid for kid, key in before.items() if jwks.get(kid) == key))

    def _drop_old(self) -> None:
        """Forget a set that could not be read again for a day, and the tokens that it verified."""
        if self._keys and self._clock() - self._fetched > KEY_SET_KEPT:
            self._jwks, self._keys = {}, {}
            _log.error("key_set_dropped")
            if self.on_change is not None:
                self.on_change(frozenset())

    async def _discover(self) -> str:
        """RFC 8414 section 3.3: the metadata must be the issuer's own."""
        metadata = msgspec.json.decode(
            await self._read(f"{self._issuer.rstrip('/')}/.well-known/oauth-authorization-server"), type=_Metadata
        )
        if metadata.issuer != self._issuer:
            raise ValueError("the metadata is another issuer's")
        if self._issuer.startswith("https:") and not metadata.jwks_uri.startswith("https:"):
            raise ValueError("the key set is not protected as the issuer is")
        return metadata.jwks_uri

    async def _read(self, url: str) -> bytes:
        async with self._session.get(url, timeout=_TIMEOUT, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            body = await response.content.read(_MAX_BYTES + 1)
            while len(body) <= _MAX_BYTES and (more := await response.content.read(_MAX_BYTES)):
                body += more
            if len(body) > _MAX_BYTES:
                raise ValueError("too long")
            return body

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps the key set fresh in the background; tries often while there is none."""
        try:
            async with background.running(self._registry, key_set=self._keep_fresh):
                yield
        finally:
            if self._fetching is not None:
                await background.end(self._fetching)

    async def _keep_fresh(self) -> None:
        while True:
            await self.refresh()
            if self.ready:
                self._age.set(self._clock() - self._fetched)
            await asyncio.sleep(RETRY if self._failed else REFRESH)


def _usable(jwks: _Jwks) -> tuple[dict[str, _Jwk], dict[str, Any]]:
    """The keys that can have signed our tokens, by kid: as they were published, and constructed."""
    published: dict[str, _Jwk] = {}
    found: dict[str, Any] = {}
    for key in jwks.keys[:_MAX_KEYS]:
        if (key.kty, key.crv, key.alg, key.use) != ("EC", "P-256", "ES256", "sig") or not key.kid:
            continue
        try:
            found[key.kid] = jwk.construct(
                {"kty": "EC", "crv": "P-256", "x": key.x, "y": key.y, "alg": "ES256"}, "ES256"
            )
        except (JOSEError, ValueError):
            continue
        published[key.kid] = key
    return published, found
