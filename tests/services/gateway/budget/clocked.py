"""The scripts on a clock that a test sets. They run unchanged: only ``redis.call('TIME')`` answers otherwise."""

from __future__ import annotations

from typing import Any

import redis

from shared.state.script import ScriptCall

_CLOCK = """
local server = redis
local redis = {call = function(name, ...)
  if name ~= 'TIME' then return server.call(name, ...) end
  local at = server.call('GET', 'test:clock')
  return {string.sub(at, 1, -4), string.sub(at, -3) .. '000'}
end}
"""


class ClockedExecutor:
    """Stands where ``Executor`` does, for one server. ``epoch`` and ``now_ms`` are the test's to change."""

    def __init__(self, client: redis.Redis, now_ms: int) -> None:
        self.client = client
        self.current_epoch = "epoch-1"
        self.now_ms = now_ms

    @property
    def now_ms(self) -> int:
        return self._now_ms

    @now_ms.setter
    def now_ms(self, value: int) -> None:
        self._now_ms = value
        self.client.set("test:clock", value)

    def epoch(self, shard: int) -> str:
        return self.current_epoch

    async def run(self, shard: int, call: ScriptCall) -> Any:
        script, keys, args = call
        epoch = (self.current_epoch,) if script.takes_epoch else ()
        return self.client.eval(_CLOCK + script.source, len(keys), *keys, *epoch, *args)
