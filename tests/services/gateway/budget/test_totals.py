"""``total_budget``: all users of a service type together, held within a second, and rebuilt after a loss."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from decimal import Decimal

import pytest

from services.gateway.budget.charging import bounds
from services.gateway.budget.models import Delivery
from services.gateway.budget.services import Budgets
from services.gateway.errors import BudgetExceeded, BudgetReserved
from shared.errors import DependencyUnavailable, ServiceError
from shared.stores.redis import connect
from tests.services.gateway.budget.support import FAST, MODEL, ask, delivered, ledger, opened, principal, row, rows
from tests.support.waiting import until

TOTAL = 20 * 2_100_000
KIND = row(total_budget_nano=TOTAL, max_budget_nano=10**12, rpm=1000)
KINDS = rows(KIND, row("other"))


async def known(budgets: Budgets) -> None:
    async def told() -> bool:
        try:
            wanted = ask(principal(KIND))
            budgets._totals.check(wanted, bounds(wanted, KIND.max_budget_nano))
        except DependencyUnavailable:
            return False
        except ServiceError:
            return True
        return True

    await until(told)


async def refused(budgets: Budgets, kind: type[ServiceError]) -> ServiceError:
    """Wait, at most a second, for the next user to be refused so."""
    found: list[ServiceError] = []

    async def told() -> bool:
        try:
            budgets.settle(await budgets.admit(ask(principal(KIND, user=999), limit=1)), Delivery("abort", sent=False))
        except (BudgetExceeded, BudgetReserved) as refusal:
            if isinstance(refusal, kind):
                found.append(refusal)
        return bool(found)

    await until(told, 1)
    return found[0]


async def test_all_users_together_stay_under_the_total(redis_url: str, postgres_url: str) -> None:
    """On two gateways; reservations stand in the way first, spending for the rest of the period."""
    async with (
        opened(redis_url, postgres_url, KINDS) as (one, _, _),
        opened(redis_url, postgres_url, KINDS) as (two, _, _),
    ):
        await known(one)
        await known(two)
        held = [await (one, two)[user % 2].admit(ask(principal(KIND, user=user))) for user in range(20)]
        await refused(one, BudgetReserved)
        await refused(two, BudgetReserved)
        other = await one.admit(ask(principal(KINDS.rows["other"])))
        one.settle(other, delivered())
        for user, reservation in enumerate(held):
            (one, two)[user % 2].settle(reservation, delivered(100, 1000))
        refusal = await refused(two, BudgetExceeded)
        left = (time.time() // 86_400 + 1) * 86_400 - time.time()
        assert refusal.retry_after == pytest.approx(left, abs=2)
        assert refusal.headers["x-ratelimit-limit-requests"] == "1000"


async def test_one_request_takes_no_more_than_the_total_leaves(redis_url: str, postgres_url: str) -> None:
    small = rows(dataclasses.replace(KIND, total_budget_nano=1_000_000))
    async with opened(redis_url, postgres_url, small) as (budgets, _, _):
        await known(budgets)
        reservation = await budgets.admit(ask(principal(small.rows["ai"])))
        assert (reservation.grant, reservation.amount_nano) == (450, 1_000_000)
        budgets.settle(reservation, delivered(100, 450))


async def test_cancelled_admissions_leave_nothing_in_the_sums(redis_url: str, postgres_url: str) -> None:
    """Each at another moment: before, while and after Redis decides."""
    async with opened(redis_url, postgres_url, KINDS) as (budgets, _, _):
        await known(budgets)
        budgets.settle(await budgets.admit(ask(principal(KIND))), Delivery("abort", sent=False))
        for number in range(60):
            asking = asyncio.create_task(budgets.admit(ask(principal(KIND), limit=1)))
            for _ in range(number % 12):
                await asyncio.sleep(0)
            if not asking.cancel():
                budgets.settle(asking.result(), Delivery("abort", sent=False))
            else:
                await asyncio.wait([asking])
        assert await budgets._queue.all_settled(5)
        client = connect(redis_url, max_connections=1)
        sums = [await client.hgetall(key) async for key in client.scan_iter("*:totals")]
        await client.aclose()
        assert [one for one in sums if any(int(value) for name, value in one.items() if name.startswith(b"r|"))] == []


async def test_free_requests_of_a_dead_gateway_are_reaped_too(redis_url: str, postgres_url: str) -> None:
    free = dataclasses.replace(MODEL, input_price=Decimal(0), output_price=Decimal(0))
    async with opened(redis_url, postgres_url, KINDS) as (budgets, database, _):
        await known(budgets)
        reservation = await budgets.admit(ask(principal(KIND), model=free))
        budgets._renewals.remove(reservation)

        async def charged() -> bool:
            return [one["outcome"] for one in await ledger(database)] == ["expired"]

        await until(charged)


@pytest.mark.parametrize("settled", ["in the ledger", "in the outbox", "open"])
async def test_the_sums_are_rebuilt_after_a_loss(redis_url: str, postgres_url: str, settled: str) -> None:
    async with opened(redis_url, postgres_url, KINDS) as (budgets, _, _):
        await known(budgets)
        held = [await budgets.admit(ask(principal(KIND, user=user))) for user in range(20)]
        if settled != "open":
            for reservation in held:
                budgets.settle(reservation, delivered(100, 1000))
        if settled == "in the ledger":
            client = connect(redis_url, max_connections=1)

            async def written() -> bool:
                return not [key async for key in client.scan_iter("*:outbox")]

            await until(written)
            await client.flushall()
            await client.aclose()
        else:
            client = connect(redis_url, max_connections=1)
            for key in [key async for key in client.scan_iter("*:totals")]:
                await client.delete(key)
            await client.aclose()
        await asyncio.sleep(0.2)
        await refused(budgets, BudgetReserved if settled == "open" else BudgetExceeded)
        for reservation in held:
            budgets.settle(reservation, delivered())


async def test_reservations_registered_again_are_in_the_sums(redis_url: str, postgres_url: str) -> None:
    """Redis lost everything; the sums are built before the next renewal."""
    async with opened(redis_url, postgres_url, KINDS, dataclasses.replace(FAST, renew=1.0)) as (budgets, _, _):
        await known(budgets)
        held = [await budgets.admit(ask(principal(KIND, user=user))) for user in range(20)]
        client = connect(redis_url, max_connections=1)
        await client.flushall()
        await client.aclose()

        async def counted() -> bool:
            return sum(one.reserved_nano for one in budgets._totals._sums.values()) == 0

        await until(counted)

        async def registered() -> bool:
            return sum(one.reserved_nano for one in budgets._totals._sums.values()) == TOTAL

        await until(registered)
        for reservation in held:
            budgets.settle(reservation, Delivery("abort", sent=False))
        await until(counted)


async def test_sums_that_cannot_be_read_admit_nobody(unused_port: int, redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, f"postgresql://127.0.0.1:{unused_port}/none", KINDS) as (budgets, _, _):
        with pytest.raises(DependencyUnavailable):
            await budgets.admit(ask(principal(KIND)))
