"""Limits per minute and source or identity, counted in Redis.

The window slides over two counters: this minute's, plus the part of the last minute's that is still within sixty
seconds. A count takes one round trip. Names in Redis are digests.

A source has two windows at each door: one counts successes, once the credential is verified, and one counts refusals.
Garbage fills only the second, so it never locks out good credentials from the same address: those are still verified.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from aiohttp import web

from services.auth.breaker import Breaker, BreakerOpen
from services.auth.errors import AuthError, SlowDown
from shared.state.script import ScriptCall
from shared.stores.redis import Client, RedisError
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

WINDOW = 60
#: Seconds that a limit waits for Redis, and seconds after a failure in which Redis is not asked.
_PATIENCE, _PAUSE = 0.5, 1.0
#: Number of subjects that this process counts itself while Redis is down, and of full windows that it remembers.
_LOCAL_SUBJECTS = 50_000
_REFUSED = "_failed"

_SCRIPT = """
local now = redis.call('TIME')
local seconds = tonumber(now[1]) + tonumber(now[2]) / 1e6
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local index = math.floor(seconds / window)
local into = seconds - index * window
local state = redis.call('HMGET', KEYS[1], 'i', 'now', 'last')
local current, last = tonumber(state[2] or 0), tonumber(state[3] or 0)
local stored = tonumber(state[1] or index)
if stored == index - 1 then current, last = 0, current
elseif stored ~= index then current, last = 0, 0 end
local used = current + last * (window - into) / window
if used + 1 > limit then
  local wait
  if current + 1 <= limit then
    wait = (used + 1 - limit) * window / last
  else
    wait = window - into + (current + 1 - limit) * window / current
  end
  return math.max(1, math.ceil(wait))
end
redis.call('HSET', KEYS[1], 'i', index, 'now', current + 1, 'last', last)
redis.call('EXPIRE', KEYS[1], window * 2)
return 0
"""

_log = logs.logger("limits")


class _Window(NamedTuple):
    kind: str
    key: str
    limit: int


class Limits:
    """The limits of auth.

    While Redis is down each process counts for itself: an outage neither locks out nor lifts limits.
    """

    def __init__(
        self,
        redis: Client,
        registry: Registry,
        *,
        kinds: Mapping[str, int],
        doors: Mapping[str, int] | None = None,
        refusals: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        :param kinds: the limit per minute of each kind; 0 = no limit.
        :param doors: kinds with a second window of the same size, for the refusals that ``failures`` counts.
        :param refusals: doors that have the second window alone.
        """
        doors = doors or {}
        refusals = {**doors, **(refusals or {})}
        kinds = {**kinds, **doors, **{f"{name}{_REFUSED}": limit for name, limit in refusals.items()}}
        self._redis, self._kinds, self._clock = redis, kinds, clock
        self._breaker = Breaker(
            failures=1, counts=(RedisError, TimeoutError), clock=clock, first=_PAUSE, longest=_PAUSE
        )
        self._local: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._full: OrderedDict[str, float] = OrderedDict()  # the time until which a window has no room, by name
        self._refused = registry.counter("limit_refusals_total", "Requests refused by a limit.", ("kind",))
        self._fallbacks = registry.counter("limit_fallbacks_total", "Limits counted in process: no Redis.", ("kind",))
        for kind in kinds:
            self._refused.preset(kind)
            self._fallbacks.preset(kind)

    @asynccontextmanager
    async def failures(self, door: str, address: str) -> AsyncIterator[None]:
        """Count the refusals of bad requests and credentials, but not of limits, that the block raises.

        :raises SlowDown: instead of the refusal, once the address has had too many.
        """
        try:
            yield
        except SlowDown:
            raise
        except AuthError:
            await self.take_failure(door, address)
            raise

    async def take_failure(self, door: str, address: str) -> None:
        """Count one refusal of a request from an address.

        :raises SlowDown: with the seconds until one more fits.
        """
        await self.take_source(f"{door}{_REFUSED}", address)

    async def take_source(self, kind: str, address: str) -> None:
        """Count one request from an address.

        :raises SlowDown: with the seconds until one more fits.
        """
        await self.take((kind, source(address)))

    async def take(self, *takes: tuple[str, str], beside: ScriptCall | None = None) -> Any:
        """Count one request for each kind and subject, in one round trip.

        :param takes: callers that share several subjects have them in the same order.
        :param beside: another call, sent in the same round trip.
        :returns: its reply; None without one, and if Redis could not be asked.
        :raises SlowDown: one has no room, with the seconds until one more fits; the others may have counted it.
        """
        windows = [
            _Window(kind, f"mlpa:rl:{kind}:{hashlib.sha256(subject.encode()).hexdigest()[:32]}", limit)
            for kind, subject in takes
            if (limit := self._kinds[kind])
        ]
        waits: list[float] = [self._until_room(window.key) for window in windows]
        reply = None
        if windows and not any(waits):
            waits, reply = await self._count(windows, beside)
        for window, wait in zip(windows, waits, strict=True):
            if wait:
                self._refused.inc(window.kind)
                raise SlowDown(wait)
        return reply

    async def _count(self, windows: list[_Window], beside: ScriptCall | None) -> tuple[list[float], Any]:
        """Count one request in each window. Returns the seconds until one more fits, 0 if this one does, and the reply
        to the call beside.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for window in windows:
            pipeline.eval(_SCRIPT, 1, window.key, window.limit, WINDOW)
        if beside is not None:
            pipeline.eval(beside.script.source, len(beside.keys), *beside.keys, *beside.argv(""))
        waits: list[float] = []
        reply = None
        try:
            with self._breaker.call():
                async with asyncio.timeout(_PATIENCE):
                    replies = await pipeline.execute()
        except (RedisError, TimeoutError, BreakerOpen):
            for window in windows:
                self._fallbacks.inc(window.kind)
                waits.append(self._take_locally(window))
        else:
            waits = list(map(float, replies[: len(windows)]))
            reply = replies[-1] if beside is not None else None
            for window, wait in zip(windows, waits, strict=True):
                if not wait:
                    self._take_locally(window)  # so that an outage does not start with an empty window
        for window, wait in zip(windows, waits, strict=True):
            if wait:
                self._full[window.key] = self._clock() + wait
                if len(self._full) > _LOCAL_SUBJECTS:
                    self._full.popitem(last=False)
        return waits, reply

    def _until_room(self, key: str) -> float:
        """Seconds until a full window has room again. Until then a flood costs Redis nothing."""
        until = self._full.get(key)
        if until is None:
            return 0
        wait = until - self._clock()
        if wait > 0:
            return wait
        del self._full[key]
        return 0

    def _take_locally(self, window: _Window) -> int:
        _, key, limit = window
        now = self._clock()
        index = int(now // WINDOW)
        stored, count = self._local.pop(key, (index, 0))
        count = count + 1 if stored == index else 1
        self._local[key] = (index, min(count, limit + 1))
        if len(self._local) > _LOCAL_SUBJECTS:
            self._local.popitem(last=False)
        return int(WINDOW - now % WINDOW) + 1 if count > limit else 0


LIMITS = web.AppKey("limits", Limits)


@lru_cache(maxsize=10_000)
def source(address: str) -> str:
    """The source that an address counts as. IPv6 is counted per /64, since one subscriber owns a whole /64."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.IPv6Address(int(ip) >> 64 << 64))
