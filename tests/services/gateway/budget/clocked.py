"""The scripts on a clock and in an epoch that a test sets. They run unchanged: only ``redis.call`` answers ``TIME`` and
``INFO`` otherwise."""

from __future__ import annotations

from typing import Any

import redis

from shared.state.script import ScriptCall

_CLOCK = """
local server = redis
local redis = {call = function(name, ...)
  if name == 'INFO' then return 'run_id:' .. server.call('GET', 'test:epoch') end
  if name ~= 'TIME' then return server.call(name, ...) end
  local at = server.call('GET', 'test:clock')
  return {string.sub(at, 1, -4), string.sub(at, -3) .. '999'}
end}
"""


def _clocked(source: str) -> str:
    head, _, body = source.partition("\n")  # the line for Redis must stay the first
    return f"{head}{_CLOCK}{body}"


class ClockedExecutor:
    """Stands where ``Executor`` does, for one server. ``epoch`` and ``now_ms`` are the test's to change."""

    def __init__(self, client: redis.Redis, now_ms: int) -> None:
        self.client = client
        self.current_epoch = "epoch1"
        self.now_ms = now_ms

    @property
    def now_ms(self) -> int:
        return self._now_ms

    @now_ms.setter
    def now_ms(self, value: int) -> None:
        self._now_ms = value
        self.client.set("test:clock", value)

    @property
    def current_epoch(self) -> str:
        return self._epoch

    @current_epoch.setter
    def current_epoch(self, value: str) -> None:
        self._epoch = value
        self.client.set("test:epoch", value)

    def epoch(self, shard: int) -> str:
        return self.current_epoch

    async def run(self, shard: int, call: ScriptCall) -> Any:
        args = call.argv(self.current_epoch)
        return self.client.eval(_clocked(call.script.source), len(call.keys), *call.keys, *args)


class ClockedClient:
    """A stand-in for auth's client of Redis, for calls of ``eval``."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    async def eval(self, source: str, numkeys: int, *args: str | bytes) -> Any:
        return self._client.eval(_clocked(source), numkeys, *args)
