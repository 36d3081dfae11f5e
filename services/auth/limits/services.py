"""Limits per minute on what a source or an identity may ask, counted in Redis.

A sliding window of two counters: what came in this minute, plus the part of the last minute that is still within
sixty seconds. One round trip. Names in Redis are digests.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from services.auth.errors import SlowDown
from services.auth.fxa.breaker import Breaker, BreakerOpen
from shared import logs
from shared.metrics import Registry
from shared.redis import Client, RedisError

WINDOW = 60
#: A limit is not worth a longer wait for Redis, nor one of every request while it is away, in seconds.
_PATIENCE, _PAUSE = 0.5, 1.0
#: How many subjects this process counts itself while Redis is away.
_LOCAL_SUBJECTS = 50_000

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


class Limits:
    """While Redis is away each process counts for itself, so that an outage neither locks out nor opens the door."""

    def __init__(
        self, redis: Client, registry: Registry, *, kinds: dict[str, int], clock: Callable[[], float] = time.time
    ) -> None:
        """:param kinds: the limit per minute of each kind; 0 = no limit."""
        self._script: Any = redis.register_script(_SCRIPT)
        self._kinds = kinds
        self._clock = clock
        self._breaker = Breaker(
            failures=1, counts=(RedisError, TimeoutError), clock=clock, first=_PAUSE, longest=_PAUSE
        )
        self._local: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._refused = registry.counter("limit_refusals_total", "Requests refused by a limit.", ("kind",))
        self._fallbacks = registry.counter("limit_fallbacks_total", "Limits counted in process: no Redis.", ("kind",))
        for kind in kinds:
            self._refused.preset(kind)
            self._fallbacks.preset(kind)

    async def take_source(self, kind: str, address: str) -> None:
        """Count one request from an address.

        :raises SlowDown: with the seconds until one more fits.
        """
        await self.take(kind, source(address))

    async def take(self, kind: str, subject: str) -> None:
        """Count one request of a subject.

        :raises SlowDown: with the seconds until one more fits.
        """
        limit = self._kinds[kind]
        if not limit:
            return
        key = f"mlpa:rl:{kind}:{hashlib.sha256(subject.encode()).hexdigest()[:32]}"
        try:
            with self._breaker.call():
                async with asyncio.timeout(_PATIENCE):
                    wait = int(await self._script(keys=[key], args=[limit, WINDOW]))
        except (RedisError, TimeoutError, BreakerOpen):
            self._fallbacks.inc(kind)
            wait = self._take_locally(key, limit)
        if wait:
            self._refused.inc(kind)
            raise SlowDown(wait)

    def _take_locally(self, key: str, limit: int) -> int:
        now = self._clock()
        index = int(now // WINDOW)
        stored, count = self._local.pop(key, (index, 0))
        count = count + 1 if stored == index else 1
        self._local[key] = (index, min(count, limit + 1))
        if len(self._local) > _LOCAL_SUBJECTS:
            self._local.popitem(last=False)
        return int(WINDOW - now % WINDOW) + 1 if count > limit else 0


def source(address: str) -> str:
    """Whom an address belongs to: of IPv6 everybody has a network of 2**64 addresses to send from."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.IPv6Address(int(ip) >> 64 << 64))
