"""A cache of verified tokens and definite refusals, in Redis, for all processes.

    mlpa:fxa:v1:<HMAC of issuer + token>     MAC, then the entry; never the token
    mlpa:fxa:lock:<the same>                 held while a process verifies that token
    mlpa:fxa:uid:<HMAC of the uid>           ZSET of an account's entries by expiry, for ``purge``
    mlpa:fxa:purged:<HMAC of the uid>        set by ``purge``, for verifications under way

An entry's MAC covers its key, so that an entry that was written or moved by somebody else is ignored. The entry holds
its expiry by our clock, which is checked at every read, whatever Redis does.

While Redis is down there are no entries and every token is verified; only ``purge`` needs Redis.
"""

from __future__ import annotations

import asyncio
import hmac
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from redis.exceptions import ConnectionError, TimeoutError as RedisTimeoutError

from services.auth.breaker import Breaker, BreakerOpen, State
from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.metrics import FxAMetrics
from services.auth.fxa.models import FxAConfig, FxAIdentity
from shared.stores.redis import Client, RedisError, needed
from shared.telemetry import logs

MAC_BYTES = 32
#: Longer than any verification takes: results stored after a purge by a verification begun before it are dropped.
PURGE_SECONDS = 30
#: The part by which each time to live is shortened at random, so that entries made together don't end together.
JITTER = 0.1
POLL_SECONDS = 0.03

_UNLOCK = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

_log = logs.logger("fxa")


class _Verified(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, tag="v"):
    until: float
    uid: str
    client_id: str
    scopes: tuple[str, ...]
    expires_at: float | None
    issued_at: float
    generation: int | None


class _Refused(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, tag="r"):
    until: float
    reason: str


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[_Verified | _Refused] = msgspec.msgpack.Decoder(_Verified | _Refused)


class EntryKey(msgspec.Struct, frozen=True):
    """The name of a token in Redis and in memory."""

    digest: bytes
    name: str
    lock: str


class _CacheDown(Exception):
    """Redis is down or slow, or refuses a command."""


class Cache:
    def __init__(self, redis: Client, config: FxAConfig, *, clock: Callable[[], float], metrics: FxAMetrics) -> None:
        self._redis = redis
        self._unlock: Any = redis.register_script(_UNLOCK)
        self._config, self._clock, self._metrics = config, clock, metrics
        self._issuer = config.issuer.encode()
        # Copying a keyed HMAC is cheaper than making one
        self._token_mac = hmac.new(config.cache_secret, digestmod="sha256")
        # The other uses have derived keys. No issuer begins with a zero byte.
        self._value_mac = hmac.new(_digest(self._token_mac, b"\0mlpa fxa value"), digestmod="sha256")
        self._uid_mac = hmac.new(_digest(self._token_mac, b"\0mlpa fxa uid"), digestmod="sha256")
        self._breaker = Breaker(
            failures=2,
            counts=(ConnectionError, RedisTimeoutError, TimeoutError),
            clock=clock,
            first=1,
            longest=1,
            on_change=_breaker_changed,
        )
        # As long as a verification can take
        self._lock_seconds = config.timeout + config.queue_wait + 0.5

    def key(self, token: str) -> EntryKey:
        digest = _digest(self._token_mac, self._issuer + token.encode())
        text = digest.hex()
        return EntryKey(digest, f"mlpa:fxa:v1:{text}", f"mlpa:fxa:lock:{text}")

    async def get(self, key: EntryKey) -> FxAIdentity | InvalidFxAToken | None:
        """The valid entry of a token, in one round trip; None if there is none or Redis is down."""
        try:
            value = await self._do(lambda: self._redis.get(key.name))
        except _CacheDown:
            return None
        return None if value is None else self._open(key, value)

    async def put(self, key: EntryKey, outcome: FxAIdentity | InvalidFxAToken) -> None:
        """Store an identity or a lasting refusal, for as long as allowed; does nothing while Redis is down."""
        now = self._clock()
        if isinstance(outcome, InvalidFxAToken):
            seconds = min(self._config.refusal_cache_ttl, self._config.cache_ttl) if outcome.lasting else 0.0
        else:
            seconds = self._lifetime(outcome, now)
        milliseconds = int(seconds * 1000 * random.uniform(1 - JITTER, 1))  # noqa: S311
        if milliseconds <= 0:
            return
        until = now + milliseconds / 1000
        try:
            if isinstance(outcome, InvalidFxAToken):
                value = self._seal(key, _Refused(until, outcome.reason))
                await self._do(lambda: self._redis.set(key.name, value, px=milliseconds))
            else:
                await self._put_identity(key, outcome, until, milliseconds)
        except _CacheDown:
            return

    @asynccontextmanager
    async def turn(self, key: EntryKey) -> AsyncIterator[FxAIdentity | InvalidFxAToken | None]:
        """Take turns at verifying a token, one process at a time.

        Yields the result that another process stored meanwhile, or None if the caller has to verify: also while
        Redis is down, or when the other process takes too long.
        """
        nonce = secrets.token_hex(16)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._lock_seconds
        held = False
        try:
            try:
                while not (held := await self._lock(key, nonce)) and loop.time() < deadline:
                    await asyncio.sleep(POLL_SECONDS)
                    if (found := await self.get(key)) is not None:
                        break
                else:
                    # It may have been stored between our first look and the lock
                    found = await self.get(key) if held else None
            except _CacheDown:
                found = None
            yield found
        finally:
            if held:
                await self._release(key, nonce)

    async def purge(self, uid: str) -> int:
        """Drop all entries of an account, and results of verifications under way; returns how many entries there were.

        :raises DependencyUnavailable: Redis is down.
        """
        name = self._uid_name(uid)
        with needed():
            await self._redis.set(f"mlpa:fxa:purged:{name}", b"1", ex=PURGE_SECONDS)
            digests: list[Any] = await self._redis.zrange(f"mlpa:fxa:uid:{name}", 0, -1)
            dropped = 0
            for digest in digests:
                dropped += int(await self._redis.delete(f"mlpa:fxa:v1:{digest.hex()}"))
            if digests:
                await self._redis.zrem(f"mlpa:fxa:uid:{name}", *digests)
        return dropped

    async def held(self, uid: str) -> list[FxAIdentity]:
        """The identities that are stored of an account's tokens.

        :raises DependencyUnavailable: Redis is down.
        """
        with needed():
            digests: list[Any] = await self._redis.zrange(f"mlpa:fxa:uid:{self._uid_name(uid)}", 0, -1)
            keys = [EntryKey(digest, f"mlpa:fxa:v1:{digest.hex()}", "") for digest in digests]
            values: list[Any] = [await self._redis.get(key.name) for key in keys]
        found = [self._open(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
        return [one for one in found if isinstance(one, FxAIdentity)]

    def _lifetime(self, identity: FxAIdentity, now: float) -> float:
        if identity.expires_at is None:
            return min(self._config.cache_ttl, self._config.opaque_cache_ttl)
        return min(self._config.cache_ttl, identity.expires_at - now - self._config.clock_skew)

    async def _put_identity(self, key: EntryKey, identity: FxAIdentity, until: float, milliseconds: int) -> None:
        entry = _Verified(
            until,
            identity.uid,
            identity.client_id,
            identity.scopes,
            identity.expires_at,
            identity.issued_at,
            identity.generation,
        )
        value = self._seal(key, entry)
        name = self._uid_name(identity.uid)

        async def store() -> bool:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.set(key.name, value, px=milliseconds)
            pipeline.zremrangebyscore(f"mlpa:fxa:uid:{name}", "-inf", f"({self._clock()}")
            pipeline.zadd(f"mlpa:fxa:uid:{name}", {key.digest: until})
            pipeline.expire(f"mlpa:fxa:uid:{name}", int(self._config.cache_ttl) + PURGE_SECONDS)
            # Checked after the index is written: a purge either finds the entry there, or is seen here
            pipeline.exists(f"mlpa:fxa:purged:{name}")
            return bool((await pipeline.execute())[-1])

        if await self._do(store):
            await self._do(lambda: self._redis.delete(key.name))

    def _uid_name(self, uid: str) -> str:
        return _digest(self._uid_mac, uid.encode()).hex()

    def _seal(self, key: EntryKey, entry: _Verified | _Refused) -> bytes:
        payload = _encoder.encode(entry)
        return self._mac(key, payload) + payload

    def _open(self, key: EntryKey, value: bytes) -> FxAIdentity | InvalidFxAToken | None:
        payload = value[MAC_BYTES:]
        if not hmac.compare_digest(value[:MAC_BYTES], self._mac(key, payload)):
            return None
        try:
            entry = _decoder.decode(payload)
        except (ValueError, RecursionError):  # of another version of this service
            return None
        now = self._clock()
        if entry.until <= now:
            return None
        if isinstance(entry, _Refused):
            return InvalidFxAToken(entry.reason, source="cache")
        if entry.expires_at is not None and entry.expires_at <= now:
            return None
        return FxAIdentity(
            entry.uid, entry.client_id, entry.scopes, entry.expires_at, "cache", entry.issued_at, entry.generation
        )

    def _mac(self, key: EntryKey, payload: bytes) -> bytes:
        return _digest(self._value_mac, key.digest + payload)

    async def _lock(self, key: EntryKey, nonce: str) -> bool:
        milliseconds = int(self._lock_seconds * 1000)
        return bool(await self._do(lambda: self._redis.set(key.lock, nonce, nx=True, px=milliseconds)))

    async def _release(self, key: EntryKey, nonce: str) -> None:
        try:
            await self._do(lambda: self._unlock(keys=[key.lock], args=[nonce]))
        except _CacheDown:
            return  # the lock expires by itself

    async def _do(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Run a command. Waits a moment at most, and not at all while Redis is known to be down.

        :raises _CacheDown: it failed.
        """
        try:
            with self._breaker.call():
                async with asyncio.timeout(self._config.cache_timeout):
                    return await command()
        except BreakerOpen as error:
            self._metrics.cache_failures.inc("open")
            raise _CacheDown from error
        except (RedisError, TimeoutError) as error:
            reason = "timeout" if isinstance(error, TimeoutError | RedisTimeoutError) else "error"
            self._metrics.cache_failures.inc(reason)
            raise _CacheDown from error


def _breaker_changed(state: State) -> None:
    if state is not State.HALF_OPEN:
        _log.warning("fxa_cache_bypassed" if state is State.OPEN else "fxa_cache_used_again")


def _digest(keyed: hmac.HMAC, message: bytes) -> bytes:
    mac = keyed.copy()
    mac.update(message)
    return mac.digest()
