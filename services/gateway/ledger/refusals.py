"""Refused requests on their way to PostgreSQL: samples, in batches, and never in the way of a request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import islice

import msgspec

from services.gateway.budget.models import new_id
from services.gateway.errors import GatewayError, kind_of
from services.gateway.ledger.storage import ERASURE
from shared.errors import DependencyUnavailable, ServiceError
from shared.service import background
from shared.stores.postgres import Database, Query
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: A process keeps so many at once, and so many a second in the long run; of one user and code so many a minute.
BURST, PER_SECOND, PER_USER = 300, 1.0, 3
_MINUTE = 60.0
_EVERY, _PAUSE = 1.0, 5.0
_AT_ONCE, _WAITING = 300, 1000
_LAST_PATIENCE = 1.0

_WRITE = Query.text(
    f"""
    insert into refusals (at, id, request_id, user_id, service_type, model, code, reason)
    select to_timestamp(at_ms / 1000.0), id, request_id, case when not exists (select {ERASURE}) then user_id end,
        service_type, model, code, reason
    from jsonb_to_recordset(cast(:rows as jsonb)) as row (
        at_ms bigint, id text, request_id text, user_id text, service_type text, model text, code text, reason text)
    on conflict do nothing
    """  # noqa: S608  ours
)
_log = logs.logger("refusals")


class Refused(msgspec.Struct, frozen=True):
    """A request that was answered with an error. It has nothing of what the client wrote but the request's id."""

    id: str
    at_ms: int
    request_id: str
    user_id: str | None
    service_type: str
    model: str
    code: str
    reason: str


class RefusalLog:
    """The refusals of this process that PostgreSQL has not got yet. Adding one never waits and never fails.

    A flood is sampled: each user has a share, so that one that floods hides no other, and the process has one, which
    bounds the table.
    """

    def __init__(self, database: Database, registry: Registry, *, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock
        self._waiting: deque[Refused] = deque()
        self._some = asyncio.Event()
        self._room, self._filled = float(BURST), clock()
        self._of_users: Counter[tuple[str | None, str]] = Counter()
        self._minute = 0
        self._unkept = registry.counter(
            "refusals_unkept_total",
            "Refused requests of which the console has no row: the user's share or the process' was used up,"
            " or PostgreSQL took none.",
            ("reason",),
        )
        for reason in ("user", "process", "postgres"):
            self._unkept.preset(reason)

    def add(
        self, error: ServiceError, *, request_id: str, user_id: str | None, service_type: str, model: str | None
    ) -> None:
        code = kind_of(error).code
        if reason := self._full(user_id, code):
            self._unkept.inc(reason)
            return
        self._waiting.append(
            Refused(
                new_id(), int(self._clock() * 1000), request_id, user_id, service_type, model or "", code, _words(error)
            )
        )
        self._some.set()

    def _full(self, user_id: str | None, code: str) -> str | None:
        """Why one more is not kept, if it isn't; otherwise it is counted."""
        now = self._clock()
        self._room = min(BURST, self._room + max(0.0, now - self._filled) * PER_SECOND)
        self._filled = now
        if self._room < 1:
            return "process"
        if len(self._waiting) >= _WAITING:
            return "postgres"
        if int(now // _MINUTE) != self._minute:
            self._minute = int(now // _MINUTE)
            self._of_users.clear()
        if self._of_users[user_id, code] >= PER_USER:
            return "user"
        self._of_users[user_id, code] += 1
        self._room -= 1
        return None

    async def write(self) -> None:
        """Write what waits.

        :raises DatabaseUnavailable: what was not written is kept.
        """
        while self._waiting:
            batch = list(islice(self._waiting, _AT_ONCE))
            await self._database.execute(_WRITE, rows=msgspec.json.encode(batch).decode())
            for _ in batch:
                self._waiting.popleft()

    @asynccontextmanager
    async def running(self, registry: Registry) -> AsyncIterator[None]:
        """Writes in the background, and the rest at the end."""
        async with background.running(registry, refusals=self._keep_writing):
            yield
        with contextlib.suppress(DependencyUnavailable, TimeoutError):
            async with asyncio.timeout(_LAST_PATIENCE):
                await self.write()

    async def _keep_writing(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(_EVERY)
            self._some.clear()
            try:
                await self.write()
            except DependencyUnavailable:
                _log.warning("refusals_wait", rows=len(self._waiting))
                self._some.set()
                await asyncio.sleep(_PAUSE)


def _words(error: ServiceError) -> str:
    if isinstance(error, DependencyUnavailable):
        return f"{error.dependency} could not be asked: {error.reason}."
    return (error.why if isinstance(error, GatewayError) else None) or error.message
