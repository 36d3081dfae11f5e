"""Refusals in the audit log. Anybody can cause any number of them, so those of a kind share a row."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import web

from services.auth.audit import storage
from services.auth.audit.storage import Actor
from shared.errors import DependencyUnavailable
from shared.service import background
from shared.stores.postgres import Database
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: Seconds between two rows of one kind, and from the first refusal to the first row, which has a burst as a whole.
EVERY, SETTLE = 60.0, 0.5
#: The most kinds at a time; further ones share one row of their actor and action.
MOST = 200
OTHERS = "others"
_LONGEST = 256

_log = logs.logger("audit")


@dataclass(slots=True)
class _Kind:
    """Refusals that share a row. ``counts``: since the last row, by what was tried."""

    actor: Actor
    action: str
    subject: str
    due: float
    counts: Counter[str] = field(default_factory=Counter)


class Refusals:
    """The refusals of this process. Rows for one actor, action, subject and source are at least a minute apart."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._kinds: dict[tuple[str, ...], _Kind] = {}
        self._waiting = False

    def add(self, actor: Actor, action: str, subject: str, tried: str) -> bool:
        """Count one refusal. Returns whether it is the first since the last row of its kind.

        :param tried: the refused action, of few values; the row counts by it.
        """
        subject = _shown(subject)
        name = (actor.name, action, subject, actor.source)
        if name not in self._kinds and len(self._kinds) >= MOST:
            actor, subject = Actor(actor.name, OTHERS), OTHERS
            name = (actor.name, action, subject, actor.source)
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _Kind(actor, action, subject, self._clock() + SETTLE)
        kind.counts[tried] += 1
        return kind.counts.total() == 1

    async def write(self, *, everything: bool = False) -> None:
        """Write the rows that are due, or all of them.

        :raises DatabaseUnavailable: unwritten rows are kept.
        """
        now = self._clock()
        for name, kind in list(self._kinds.items()):
            if kind.due > now and not everything:
                continue
            if not kind.counts:
                del self._kinds[name]
                continue
            counts, kind.counts = kind.counts, Counter()
            try:
                new = {"attempts": counts.total(), **counts}
                await storage.record(self._database, kind.actor, kind.action, kind.subject, new=new)
            except BaseException:
                kind.counts.update(counts)
                raise
            kind.due = now + EVERY

    @asynccontextmanager
    async def running(self, registry: Registry) -> AsyncIterator[None]:
        """Write in the background, and once more at the end."""
        async with background.running(registry, audit_refusals=self._keep_writing):
            yield
        with suppress(DependencyUnavailable):
            await self.write(everything=True)

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(SETTLE / 2)
            try:
                await self.write()
                self._waiting = False
            except DependencyUnavailable:
                if not self._waiting:
                    _log.warning("audit_refusals_wait")
                self._waiting = True


REFUSALS = web.AppKey("refusals", Refusals)


def _shown(subject: str) -> str:
    """Foreign text in a form that PostgreSQL can store."""
    return "".join(char if char.isprintable() else "\ufffd" for char in subject[:_LONGEST])
