"""Limits that don't hold: a row that is not enforced, and users with an exception."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from services.gateway.budget.models import Reservation
from services.gateway.budget.services import Budgets
from services.gateway.errors import BudgetExceeded, RateLimited, UserBlocked
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.state import decisions
from shared.state.layout import Standing
from shared.state.packed import Excepted
from shared.stores.postgres import Database, Query
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from tests.services.gateway.budget.support import BudgetReserved, ask, delivered, opened, principal, row, rows, spent
from tests.support.waiting import until

#: What a request of ``ask()`` reserves: 2.1 million nano-dollars.
WORST = 2_100_000
HOUR = 3600.0


def shadow(**changes: object) -> ServiceType:
    """A row that is not enforced for the next hour."""
    return row(enforce=False, enforce_until=time.time() + HOUR, **changes)


async def would(registry: Registry, reason: str) -> int:
    line = f'would_refuse_total{{reason="{reason}",service_type="ai"}} '
    return int(float(registry.render().decode().partition(line)[2].split()[0]))


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"rpm": 2}, "rpm"),
        ({"tpm": 50}, "tpm"),
        ({"max_streams": 2}, "streams"),
        ({"max_budget_nano": 2 * WORST}, "budget_reserved"),
        ({"max_budget_nano": 10_000}, "budget_exceeded"),
    ],
)
async def test_a_row_that_is_not_enforced_counts_and_refuses_nobody(
    redis_url: str, postgres_url: str, limits: dict[str, int], reason: str
) -> None:
    kind = shadow(**limits)
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, _, registry):
        held = [await budgets.admit(ask(principal(kind))) for _ in range(5)]
        assert {one.grant for one in held} == {1000}
        assert {one.amount_nano for one in held} == {WORST}
        state = await budgets.state(principal(kind))
        assert state.reserved_nano == 5 * WORST
        assert await would(registry, reason) == (5 if reason == "budget_exceeded" else 3)
        for one in held:
            budgets.settle(one, delivered())
        await until(lambda: spent(budgets, principal(kind)), equals=5 * 50_000)


async def test_a_row_is_enforced_again_when_its_time_is_over(redis_url: str, postgres_url: str) -> None:
    kind = row(rpm=1, enforce=False, enforce_until=time.time() + 1.0)
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, _, _):
        for _ in range(3):
            await budgets.admit(ask(principal(kind)))

        async def refused() -> bool:
            with contextlib.suppress(RateLimited):
                await budgets.admit(ask(principal(kind)))
                return False
            return True

        await until(refused)
        assert time.time() >= kind.enforce_until


async def test_what_is_not_the_users_own_limit_refuses_all_the_same(redis_url: str, postgres_url: str) -> None:
    kind = shadow(rpm=1, max_budget_nano=1, total_budget_nano=3 * WORST + 1_000_000)
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, _, _):
        held: list[Reservation] = []
        await until(lambda: known(budgets))
        for user in range(1, 7):
            with contextlib.suppress(BudgetReserved, BudgetExceeded):
                held.append(await budgets.admit(ask(principal(kind, user=user))))
            reserved = sum(one.amount_nano for one in held)
            await until(lambda: budgets._totals._known["ai:86400"].total.reserved_nano, equals=reserved)
        grants = [one.grant for one in held]
        assert grants[:3] == [1000, 1000, 1000]
        assert sum(grants) < 3 * 1000 + 500
        client = connect(redis_url)
        await decisions.set_standing(client, f"{1:032x}", Standing.BLOCKED)
        await client.aclose()
        with pytest.raises(UserBlocked):
            await budgets.admit(ask(principal(kind, user=1)))


async def known(budgets: Budgets) -> bool:
    return not budgets._totals.unknown()


class World:
    """Two gateways, and the decisions that auth writes."""

    def __init__(self, gateways: list[Budgets], database: Database, redis_url: str) -> None:
        self.gateways, self.database, self.redis_url = gateways, database, redis_url

    async def except_(self, user: str, given: Excepted) -> None:
        """As auth does: PostgreSQL, then Redis."""
        await self.database.execute(
            Query.text(
                "insert into users (user_id, identity, service_type, budget_tier) "
                "values (:user, split_part(:user, ':', 1), 'ai', 'ai') on conflict do nothing"
            ),
            user=user,
        )
        await self.database.execute(
            Query.text(
                "insert into exceptions (user_id, extra_nano, without_rates, ends_at) "
                "values (:user, :extra, :free, to_timestamp(:until)) on conflict (user_id) do update set "
                "extra_nano = :extra, without_rates = :free, ends_at = to_timestamp(:until)"
            ),
            user=user,
            extra=given.extra_nano,
            free=given.without_rates,
            until=given.until,
        )
        client = connect(self.redis_url)
        await decisions.set_user(client, user, "ai", given)
        await client.aclose()

    async def most(self, kind: ServiceType, tries: int) -> list[int]:
        """What so many requests at once reserve, over both gateways."""
        asked = [self.gateways[n % 2].admit(ask(principal(kind))) for n in range(tries)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        return [one.amount_nano for one in found if not isinstance(one, BaseException)]


@contextlib.asynccontextmanager
async def world(redis_url: str, postgres_url: str, table: ServiceTypes) -> AsyncIterator[World]:
    async with (
        opened(redis_url, postgres_url, table) as (one, database, _),
        opened(redis_url, postgres_url, table) as (two, _, _),
    ):
        yield World([one, two], database, redis_url)


async def test_an_exception_adds_its_money_exactly_over_gateways_and_survives_an_emptied_redis(
    redis_url: str, postgres_url: str
) -> None:
    kind = row(max_budget_nano=3 * WORST)
    user = principal(kind).user_id
    async with world(redis_url, postgres_url, rows(kind)) as both:
        assert sum(await both.most(kind, 10)) <= 3 * WORST
        await both.except_(user, Excepted(time.time() + HOUR, 20 * WORST, without_rates=False))
        taken = sum(await both.most(kind, 60))
        assert 19 * WORST < taken <= 20 * WORST
        state = await both.gateways[0].state(principal(kind))
        assert state.max_budget_nano == 23 * WORST
        assert state.spent_nano + state.reserved_nano <= 23 * WORST
        client = connect(redis_url)
        await client.flushall()
        await client.aclose()
        assert (await both.gateways[1].state(principal(kind))).max_budget_nano == 23 * WORST


async def test_an_exception_ends_by_itself(redis_url: str, postgres_url: str) -> None:
    kind = row(max_budget_nano=WORST, rpm=1)
    user = principal(kind).user_id
    async with world(redis_url, postgres_url, rows(kind)) as both:
        assert len(await both.most(kind, 4)) == 1
        ends = time.time() + 1.5
        await both.except_(user, Excepted(ends, 4 * WORST, without_rates=True))
        assert len(await both.most(kind, 3)) == 3
        assert sum(await both.most(kind, 1)) == WORST
        assert time.time() < ends

        async def refused() -> bool:
            try:
                await both.gateways[0].admit(ask(principal(kind)))
            except RateLimited:
                return True
            except BudgetReserved:  # no rate stands in the way yet
                return False
            raise AssertionError("there is no money left")

        await until(refused)
        assert (await both.gateways[0].state(principal(kind))).max_budget_nano == WORST


async def test_rates_that_are_lifted_are_still_counted(redis_url: str, postgres_url: str) -> None:
    kind = row(rpm=2, tpm=60, max_streams=2)
    user = principal(kind).user_id
    async with world(redis_url, postgres_url, rows(kind)) as both:
        await both.except_(user, Excepted(time.time() + HOUR, 0, without_rates=True))
        assert len(await both.most(kind, 10)) == 10
        await both.except_(user, Excepted(time.time() + HOUR, 1, without_rates=False))
        for one in both.gateways:
            with pytest.raises(RateLimited):
                await one.admit(ask(principal(kind)))


async def test_no_exception_lifts_a_block(redis_url: str, postgres_url: str) -> None:
    kind = row()
    async with world(redis_url, postgres_url, rows(kind)) as both:
        await both.except_(principal(kind).user_id, Excepted(time.time() + HOUR, WORST, without_rates=True))
        client = connect(redis_url)
        await both.most(kind, 1)
        await decisions.set_standing(client, principal(kind).identity, Standing.BLOCKED)
        await client.aclose()
        with pytest.raises(UserBlocked):
            await both.gateways[0].admit(ask(principal(kind)))
