"""Budgets as the rest of the gateway uses them: admission, settlement, state."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator

from services.gateway.budget import resets
from services.gateway.budget.charging import MOST, Charge, bounds, charge
from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.models import Ask, BudgetState, Delivery, Reservation, Timings
from services.gateway.budget.refusals import Refusal, label
from services.gateway.budget.scripts import SCRIPTS, BudgetScripts, Expected, rate_limits
from services.gateway.budget.totals import Totals
from services.gateway.errors import GatewayError
from services.gateway.ledger.queue import LedgerQueue
from services.gateway.ledger.reaper import Reaper
from services.gateway.ledger.rebuild import Rebuilder
from services.gateway.ledger.renewal import Renewals
from services.gateway.ledger.storage import LedgerStorage
from services.gateway.redis import server_check
from services.gateway.redis.executor import Executor, NotRun
from services.gateway.tokens.models import Principal
from shared.domain.money import NANO, usd_text
from shared.domain.outcome import Outcome
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.errors import DependencyUnavailable, ServiceError
from shared.service import background
from shared.service.health import CheckFailed
from shared.state.packed import LedgerRow
from shared.state.refusals import Word
from shared.stores.postgres import Database
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

_log = logs.logger("budget")
_TRIES = 20  # rebuilds, each of which something may overtake, and a tier
_REMEMBERED = 10_000


class Budgets:
    def __init__(
        self,
        executor: Executor,
        database: Database,
        service_types: ServiceTypes,
        registry: Registry,
        timings: Timings,
        outbox_limit: int,
    ) -> None:
        self._rows = service_types.by_name
        self._metrics = BudgetMetrics(registry, service_types)
        self._scripts = BudgetScripts(executor, timings.lease, outbox_limit)
        self._metrics.outbox_limit.set(outbox_limit)
        storage = LedgerStorage(database)
        self._rebuilder = Rebuilder(self._scripts, storage, service_types, self._metrics)
        self._queue = LedgerQueue(self._scripts, storage, self._metrics, service_types, every=timings.flush)
        self._renewals = Renewals(self._scripts, every=timings.renew)
        registry.read(self._metrics.unsettled, lambda: self._queue.unsettled)
        registry.read(self._metrics.ledger_queue, lambda: self._queue.settled)
        registry.read(self._metrics.open, lambda: len(self._renewals))
        self._reaper = Reaper(self._scripts, self._queue, self._metrics, timings)
        self._totals = Totals(self._scripts, storage, service_types, self._metrics, every=timings.totals)
        self._checks: set[asyncio.Task[None]] = set()
        executor.on_epoch(self._check_servers)
        # Users with another tier than their service type's, or an exception with money, as of the last answer. The
        # script corrects what is out of date.
        self._learned: OrderedDict[str, tuple[str, int]] = OrderedDict()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        redis_url: str,
        database: Database,
        service_types: ServiceTypes,
        registry: Registry,
        *,
        timings: Timings | None = None,
        outbox_limit: int = 0,
    ) -> AsyncIterator[Budgets]:
        """Budgets with their background work. Leaving waits for settlements and rows, up to ``timings.drain`` each.

        :param outbox_limit: ledger rows of a shard that may wait in Redis for PostgreSQL; 0: any number.
        """
        timings = timings or Timings()
        async with Executor.open(redis_url, SCRIPTS) as executor:
            budgets = cls(executor, database, service_types, registry, timings, outbox_limit)
            try:
                async with background.running(
                    registry,
                    settlements=budgets._queue.settle_again,
                    ledger=budgets._queue.write,
                    renewals=budgets._renewals.run,
                    reaper=budgets._reaper.run,
                    totals=budgets._totals.run,
                ):
                    try:
                        yield budgets
                    finally:
                        await budgets._queue.drained(timings.drain)
            finally:
                await budgets._rebuilder.build.close()

    async def redis_takes_writes(self) -> None:
        """Readiness: write over the connections that admissions use.

        :raises DependencyUnavailable: Redis did not take it.
        """
        await self._scripts.executor.can_write()

    async def totals_known(self) -> None:
        """Readiness: whether the spend of all users is known for each service type with a total budget.

        :raises CheckFailed: it is not; names the service types.
        """
        if unknown := self._totals.unknown():
            raise CheckFailed(f"not known yet for {', '.join(unknown)}")

    async def admit(self, ask: Ask) -> Reservation:
        """Reserve the worst case of a request, before it goes out.

        :raises GatewayError: it is refused, for one of the reasons of ``Word``; with the ``x-ratelimit-*`` headers.
        :raises DependencyUnavailable: Redis could not be asked, or PostgreSQL at the first sight of a user.
        """
        try:
            reservation = await self._admit(ask)
        except ServiceError as refusal:
            self._metrics.refusals.inc(label(refusal), ask.principal.service_type.name)
            raise
        self._renewals.add(reservation)
        return reservation

    async def _admit(self, ask: Ask) -> Reservation:
        principal = ask.principal
        if self._queue.full:
            raise DependencyUnavailable("redis")
        for _ in range(_TRIES):
            expected = self._expected(principal)
            # a row that is not enforced limits nothing, but the worst case is reserved all the same
            limits = bounds(ask, expected.budget_nano if expected.enforced else max(MOST, expected.budget_nano))
            try:
                room = self._totals.check(ask, limits)
            except GatewayError as refusal:
                refusal.headers.update((await self.state(principal)).rate_limits.headers())
                raise
            try:
                answer = await self._scripts.admit(ask, expected, limits, room)
            except NotRun:
                raise
            except (asyncio.CancelledError, DependencyUnavailable):
                self._withdraw(ask, expected.row)
                raise
            if isinstance(answer, Reservation):
                if answer.would_refuse is not None:
                    self._note_unenforced(answer.would_refuse, principal)
                return answer
            if answer.reason is Word.LOAD:
                await self._rebuilder.build(principal.user_id, principal.service_type)
            elif answer.reason is Word.TIER:
                self._learn(principal, answer.tier, answer.extra_nano)
            else:
                raise answer.error(
                    resets.delay(principal.user_id, expected.row.duration_seconds),
                    tier=expected.row,
                    budget=usd_text(expected.budget_nano),
                )
        raise DependencyUnavailable("redis")

    def settle(self, reservation: Reservation, delivery: Delivery) -> Charge:
        """Settle a request, once, and return its charge. Raises nothing: a background task sends the settlement."""
        cost = charge(reservation.ask, reservation.grant, delivery)
        lapsed = self._renewals.lapsed(reservation)
        if not self._renewals.remove(reservation):
            return cost
        if not lapsed:  # the reaper has counted it
            self._metrics.spend.inc(reservation.ask.principal.service_type.name, by=cost.cost_nano / NANO)
        if cost.cost_nano > reservation.amount_nano:
            self._metrics.overrun.inc(by=(cost.cost_nano - reservation.amount_nano) / NANO)
        self._queue.settle(reservation.row(cost, delivery.outcome))
        return cost

    async def state(self, principal: Principal) -> BudgetState:
        """A user's budget in the current period.

        :raises UserBlocked, InvalidToken, DependencyUnavailable: as ``admit``.
        """
        for _ in range(_TRIES):
            reason, *words = await self._scripts.state(principal)
            if reason == b"ok":
                name, extra, seconds, period, spent, reserved, *rates = words
                tier = self._rows.get(name.decode(), principal.service_type)
                if tier.duration_seconds == int(seconds):  # otherwise the tier is new, and has other periods
                    return BudgetState(
                        max_budget_nano=tier.max_budget_nano + int(extra),
                        spent_nano=int(spent),
                        reserved_nano=int(reserved),
                        resets_at=float((int(period) + 1) * int(seconds)),
                        rate_limits=rate_limits(tier, rates),
                    )
            elif reason != b"load":
                raise Refusal(Word(reason.decode())).error()
            await self._rebuilder.build(principal.user_id, principal.service_type)
        raise DependencyUnavailable("redis")

    async def check(self, principal: Principal) -> None:
        """:raises UserBlocked, InvalidToken, DependencyUnavailable: as ``admit``."""
        await self.state(principal)

    def _check_servers(self, shards: list[int]) -> None:
        """Warn if a connected server is not fit for budgets."""
        self._metrics.epoch_changes.inc()
        for link in self._scripts.executor.links():
            task = asyncio.create_task(server_check.check(link))
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)

    def _withdraw(self, ask: Ask, tier: ServiceType) -> None:
        """Take back an admission that may have happened: its answer is lost, and the request will not go out."""
        now_ms, details = int(time.time() * 1000), ask.details(tier.duration_seconds)
        user_id = ask.principal.user_id
        self._queue.settle(LedgerRow(ask.id, user_id, 0, now_ms, 0, 0, Outcome.ABORT, details, admitted=False))

    def _expected(self, principal: Principal) -> Expected:
        """The limits that a user is expected to have: those of the service type's own row if its tier has none."""
        name, extra = self._learned.get(principal.user_id, (principal.service_type.name, 0))
        row = self._rows.get(name, principal.service_type)
        return Expected(name, row, extra, row.enforces(time.time()))

    def _learn(self, principal: Principal, tier: str, extra_nano: int) -> None:
        self._learned.pop(principal.user_id, None)
        if tier != principal.service_type.name or extra_nano:
            self._learned[principal.user_id] = tier, extra_nano
            if len(self._learned) > _REMEMBERED:
                self._learned.popitem(last=False)

    def _note_unenforced(self, word: Word, principal: Principal) -> None:
        reason, service_type = word.label, principal.service_type.name
        self._metrics.would_refuse.inc(reason, service_type)
        _log.info("would_refuse", reason=reason, service_type=service_type)
