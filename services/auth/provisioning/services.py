"""Registers users as LiteLLM customers in the background. Requests neither wait for it nor fail with it.

Each user that enters is put into a short queue for a worker. PostgreSQL shows the users that were missed (the queue was
full, the process died, the tier changed), and a sweep finds them there. So the queue is only for promptness, and may
lose its content.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from dataclasses import dataclass

from services.auth.provisioning import storage
from services.auth.provisioning.client import LiteLLMAdmin, LiteLLMError, LiteLLMRefused
from services.auth.provisioning.metrics import ProvisioningMetrics
from services.auth.provisioning.models import Budget
from services.auth.provisioning.storage import Customer
from shared.domain.service_types import ServiceTypes
from shared.errors import DependencyUnavailable
from shared.service import background
from shared.stores.postgres import Database
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

_log = logs.logger("provisioning")


@dataclass(frozen=True, slots=True)
class Pace:
    """Batch sizes and intervals; times in seconds."""

    batch: int = 50
    at_once: int = 4
    max_pending: int = 10_000
    max_remembered: int = 50_000
    #: Attempts for a user that LiteLLM refuses, before the sweep takes over.
    attempts: int = 3
    first_delay: float = 1.0
    max_delay: float = 60.0
    sweep_every: float = 60.0
    sweep_batch: int = 500


class Provisioner:
    def __init__(
        self,
        admin: LiteLLMAdmin,
        database: Database,
        service_types: ServiceTypes,
        registry: Registry,
        *,
        factor: float,
        pace: Pace | None = None,
    ) -> None:
        """:param factor: LiteLLM's budget of a user as a multiple of the row's."""
        self._admin, self._database = admin, database
        self._rows, self._factor = service_types.by_name, factor
        self._table_changed = asyncio.Event()
        service_types.on_change(self._take_table)
        self._pace = pace or Pace()
        self._registry = registry
        self._metrics = ProvisioningMetrics(registry)
        self._done = _Recent(self._pace.max_remembered)
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._in_work = 0
        self._wake = asyncio.Event()
        self._budgets_stand = False
        # Otherwise worker and sweep may both find a budget gone, and the later one undoes the other's records
        self._ensuring = asyncio.Lock()
        self._fault: str | None = None
        self._swept_to = ""

    def entered(self, user_id: str) -> None:
        """Note a user that entered. Takes a microsecond and raises nothing."""
        if user_id not in self._done and user_id not in self._waiting:
            self._queue(user_id)

    def changed(self, user_id: str) -> None:
        """Note a user whose tier changed, without waiting for the sweep."""
        self._done.discard(user_id)
        self._queue(user_id)

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Run the worker and the sweep while the block lasts. A later sweep, of any process, finds the rest."""
        return background.running(
            self._registry, provisioning=self._keep_working, provisioning_sweep=self._keep_sweeping
        )

    def _take_table(self) -> None:
        """Make the budgets of the new rows without waiting for the next sweep."""
        self._budgets_stand = False
        self._table_changed.set()

    def _queue(self, user_id: str) -> None:
        if len(self._waiting) >= self._pace.max_pending:
            self._metrics.results.inc("dropped")
            return
        self._waiting[user_id] = None
        self._wake.set()
        self._show_pending()

    async def _keep_working(self) -> None:
        while True:
            await self._wake.wait()
            batch = [self._waiting.popitem(last=False)[0] for _ in range(min(self._pace.batch, len(self._waiting)))]
            if not self._waiting:
                self._wake.clear()
            try:
                await self._provision(batch)
            finally:
                self._in_work = 0  # the sweep finds the rest
                self._show_pending()

    async def _provision(self, users: list[str]) -> None:
        """Try until all are customers, or LiteLLM has refused the rest ``attempts`` times."""
        delay, refusals = self._pace.first_delay, 0
        while users and refusals < self._pace.attempts:
            self._in_work = len(users)
            self._show_pending()
            try:
                users = await self._attempt(users)
                refusals += 1
            except (LiteLLMError, DependencyUnavailable) as error:
                self._failed(error)
            if users:
                await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
                delay = min(self._pace.max_delay, delay * 2)

    async def _attempt(self, users: list[str]) -> list[str]:
        """One attempt. Returns the users that LiteLLM refused.

        :raises LiteLLMError: LiteLLM takes no user now.
        :raises DependencyUnavailable: PostgreSQL is down.
        """
        found = await storage.to_provision(self._database, users)
        customers = [customer for customer in found if customer.tier in self._rows]
        for user in set(users) - {customer.user_id for customer in customers}:
            self._done.add(user)
        if not customers:
            return []
        if not self._budgets_stand:
            await self._ensure_budgets()
        refused: list[str] = []
        for begin in range(0, len(customers), self._pace.at_once):
            some = customers[begin : begin + self._pace.at_once]
            refused += await self._put_customers(some)
        return refused

    async def _put_customers(self, customers: list[Customer]) -> list[str]:
        outcomes = await asyncio.gather(
            *(
                self._admin.put_customer(customer.user_id, customer.budget, exists=customer.known is not None)
                for customer in customers
            ),
            return_exceptions=True,
        )
        pairs = list(zip(customers, outcomes, strict=True))
        made = [customer for customer, outcome in pairs if outcome is None]
        if made:
            await storage.remember(self._database, made)
            for customer in made:
                self._done.add(customer.user_id)
                self._metrics.results.inc("success")
            self._worked()
        refused = []
        for customer, outcome in pairs:
            if isinstance(outcome, LiteLLMRefused):
                self._budgets_stand = False  # most likely its budget is gone
                self._failed(outcome)
                refused.append(customer.user_id)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, LiteLLMRefused):
                raise outcome
        return refused

    async def _ensure_budgets(self) -> None:
        """Make the budgets that LiteLLM lacks.

        :raises LiteLLMError: LiteLLM did not make one.
        :raises DependencyUnavailable: PostgreSQL is down.
        """
        async with self._ensuring:
            self._table_changed.clear()
            now = time.time()
            budgets = [Budget.of(row, self._factor, enforced=row.enforces(now)) for row in self._rows.values()]
            budgets.append(Budget.of_exceptions())
            there = await self._admin.budgets([budget.name for budget in budgets])
            for budget in budgets:
                found = there.get(budget.name)
                if found is None:
                    # LiteLLM lost it or never had it, so no customer has it, whatever PostgreSQL says
                    await storage.forget(self._database, budget.name)
                    self._done.clear()
                if found != budget:
                    await self._admin.put_budget(budget, exists=found is not None)
                    _log.info("litellm_budget_set", budget=budget.name, usd=budget.max_budget_usd)
            self._budgets_stand = not self._table_changed.is_set()
        self._worked()

    async def _keep_sweeping(self) -> None:
        while True:
            more = False
            try:
                more = await self.sweep()
            except (LiteLLMError, DependencyUnavailable) as error:
                self._failed(error)
            every = self._pace.first_delay if more else self._pace.sweep_every
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter
                    await self._table_changed.wait()

    async def sweep(self) -> bool:
        """Make the budgets, and queue some of the missing users. Returns whether there may be more.

        :raises LiteLLMError: LiteLLM did not make a budget.
        :raises DependencyUnavailable: PostgreSQL is down.
        """
        await self._ensure_budgets()
        if self._waiting or self._in_work:
            return bool(self._swept_to)
        limit = self._pace.sweep_batch
        users = await storage.find_to_provision(self._database, list(self._rows), after=self._swept_to, limit=limit)
        self._swept_to = users[-1] if len(users) == limit else ""
        for user in random.sample(users, len(users)):  # so that replicas don't all take the same ones
            self.changed(user)
        return bool(self._swept_to)

    def _show_pending(self) -> None:
        self._metrics.pending.set(len(self._waiting) + self._in_work)

    def _failed(self, error: Exception) -> None:
        """Log a fault once, not for each user that meets it."""
        self._metrics.results.inc("failure")
        self._metrics.up.set(0)
        fault = str(error) if isinstance(error, LiteLLMError) else "PostgreSQL is down"
        if fault != self._fault:
            self._fault = fault
            _log.warning("provisioning_failed", error=fault)

    def _worked(self) -> None:
        self._metrics.up.set(1)
        if self._fault is not None:
            self._fault = None
            _log.info("provisioning_resumed")


class _Recent:
    """The set of the most recently queued users."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._users: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, user: str) -> bool:
        return user in self._users

    def add(self, user: str) -> None:
        self._users[user] = None
        if len(self._users) > self._size:
            self._users.popitem(last=False)

    def discard(self, user: str) -> None:
        self._users.pop(user, None)

    def clear(self) -> None:
        self._users.clear()
