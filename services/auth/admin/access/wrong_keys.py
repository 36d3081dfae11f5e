"""Wrong admin keys, at the console and at the API: counted, slowed down per source, and in the audit log.

A key is compared even when the limit is reached, so that nobody can lock the operators out; only the answer to a wrong
key changes.
"""

from __future__ import annotations

from typing import Literal

from aiohttp import web

from services.auth.audit.refusals import Refusals
from services.auth.audit.storage import Actor
from services.auth.limits.services import Limits, source
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

Door = Literal["console", "api"]
#: The kind of the limit on them.
LIMIT = "admin_key"

_NOBODY = "unknown"

_log = logs.logger("users")


class WrongKeys:
    def __init__(self, limits: Limits, refusals: Refusals, registry: Registry) -> None:
        self._limits, self._refusals = limits, refusals
        self._refused = registry.counter("admin_keys_refused_total", "Wrong admin keys, by where they came.", ("door",))
        self._refused.preset_all(("console", "api"))

    async def count(self, door: Door, address: str) -> None:
        """:raises SlowDown: the address has sent too many."""
        self._refused.inc(door)
        if self._refusals.add(Actor(_NOBODY, source(address)), "admin_key.refused", "admin keys", door):
            _log.warning("admin_key_refused", door=door, address=source(address))
        await self._limits.take_source(LIMIT, address)


WRONG_KEYS = web.AppKey("wrong_keys", WrongKeys)
