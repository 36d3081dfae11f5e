"""``total_budget``: all users of a service type together, held within a second, and rebuilt after a loss."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
import redis
from msgspec.structs import replace

from services.gateway.budget.charging import Charge, bounds
from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.models import Delivery, RateLimits, Reservation
from services.gateway.budget.resets import delay
from services.gateway.budget.scripts import BudgetScripts, Expired, TotalsBegun
from services.gateway.budget.services import Budgets
from services.gateway.budget.totals import Totals
from services.gateway.errors import BudgetExceeded
from services.gateway.ledger.storage import LedgerStorage
from shared.domain.identity import SHARDS, shard
from shared.domain.outcome import Outcome
from shared.errors import DependencyUnavailable, ServiceError
from shared.service.health import CheckFailed
from shared.state import layout
from shared.state.script import ScriptCall
from shared.state.totals import Total
from shared.stores.postgres import Database, Query
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from tests.services.gateway.budget.clocked import ClockedExecutor
from tests.services.gateway.budget.support import (
    FAST,
    MODEL,
    BudgetReserved,
    ask,
    delivered,
    ledger,
    opened,
    principal,
    row,
    rows,
    total,
)
from tests.support.exposition import metric, series
from tests.support.sql import sql
from tests.support.waiting import until
from tests.system.proxy import Gate

FULL = bool(os.environ.get("MLPA_TEST_FULL"))
TOTAL = 20 * 2_100_000
KIND = row(total_budget_nano=TOTAL, max_budget_nano=10**12, rpm=1000)
KINDS = rows(KIND, row("other"))
#: Of the day in the ledger when Redis is lost.
ROWS = 1_000_000 if FULL else 30_000


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
    """Wait for the next user to be refused so."""
    found: list[ServiceError] = []

    async def told() -> bool:
        try:
            budgets.settle(await budgets.admit(ask(principal(KIND, user=999), limit=1)), Delivery("abort", sent=False))
        except (BudgetExceeded, BudgetReserved) as refusal:
            if isinstance(refusal, kind):
                found.append(refusal)
        return bool(found)

    await until(told)
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
        other = await one.admit(ask(principal(KINDS.by_name["other"])))
        one.settle(other, delivered())
        for user, reservation in enumerate(held):
            (one, two)[user % 2].settle(reservation, delivered(100, 1000))
        refusal = await refused(two, BudgetExceeded)
        left = (time.time() // 86_400 + 1) * 86_400 - time.time()
        assert left <= refusal.retry_after < left + 300
        assert refusal.headers["x-ratelimit-limit-requests"] == "1000"


async def test_one_request_takes_no_more_than_the_total_leaves(redis_url: str, postgres_url: str) -> None:
    small = rows(replace(KIND, total_budget_nano=1_000_000))
    async with opened(redis_url, postgres_url, small) as (budgets, _, _):
        await known(budgets)
        reservation = await budgets.admit(ask(principal(small.by_name["ai"])))
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
        client = connect(redis_url)
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
            client = connect(redis_url)

            async def written() -> bool:
                return not [key async for key in client.scan_iter("*:outbox")]

            await until(written)
            await client.flushall()
            await client.aclose()
        else:
            client = connect(redis_url)
            for key in [key async for key in client.scan_iter("*:totals")]:
                await client.delete(key)
            await client.aclose()
        await asyncio.sleep(0.2)
        await refused(budgets, BudgetReserved if settled == "open" else BudgetExceeded)
        for reservation in held:
            budgets.settle(reservation, delivered())


async def test_reservations_registered_again_are_in_the_sums(redis_url: str, postgres_url: str) -> None:
    """Redis lost everything; the sums are built before the next renewal."""
    async with opened(redis_url, postgres_url, KINDS, dataclasses.replace(FAST, lease=9, renew=3)) as (budgets, _, _):
        await known(budgets)
        held = [await budgets.admit(ask(principal(KIND, user=user))) for user in range(20)]
        client = connect(redis_url)
        await client.flushall()
        await client.aclose()

        async def counted() -> bool:
            return sum(one.total.reserved_nano for one in budgets._totals._known.values()) == 0

        await until(counted)
        await until(lambda: sum(one.total.reserved_nano for one in budgets._totals._known.values()) == TOTAL)
        for reservation in held:
            budgets.settle(reservation, Delivery("abort", sent=False))
        await until(counted)


async def spent(budgets: Budgets) -> int:
    return sum(one.total.spent_nano for one in budgets._totals._known.values() if budgets._totals._is_known("ai:86400"))


async def lose_totals(redis_url: str) -> None:
    async with connect(redis_url) as client:
        await client.delete(*(keys.totals for keys in layout.SHARD_KEYS), layout.SHARD_KEYS[0].sums)


async def test_a_build_counts_each_row_once_wherever_it_is(redis_url: str, postgres_url: str) -> None:
    """In the outbox alone, in the outbox and the ledger, in the ledger alone; reaped whole, and lowered since."""
    silent = dataclasses.replace(FAST, flush=3600, sweep=3600)
    async with opened(redis_url, postgres_url, KINDS, silent) as (budgets, database, registry):
        await known(budgets)
        held = [await budgets.admit(ask(principal(KIND, user=user))) for user in range(20)]
        for reservation in held[:15]:
            budgets.settle(reservation, delivered())
        assert await budgets._queue.all_settled(5)
        assert metric(registry, "budget_ledger_queue") == 15
        storage, rows_ = budgets._queue._storage, [one.row for one in budgets._queue._settled.values()]
        await storage.write([replace(rows_[9], cost_nano=60_000), *rows_[:9]])  # charged whole in an earlier Redis
        await budgets._queue._acknowledge(rows_[:5])
        for reservation in held[15:]:
            budgets._renewals.remove(reservation)
        executor = budgets._scripts.executor
        reaped = []
        for user_id in {one.ask.principal.user_id for one in held[15:]}:
            number = layout.of_user(user_id).number
            expired = [Expired(one.id, user_id) for one in held[15:] if one.ask.principal.user_id == user_id]
            client = connect(redis_url)
            for one in expired:
                await client.zadd(layout.SHARD_KEYS[number].leases, {f"{one.id} {user_id}": 1})
            await client.aclose()
            reaped += await budgets._scripts.reap(number, expired)
        assert len(reaped) == 5
        # the drain of a dying gateway wrote the true cost of two; of another one the reaper's row was written
        await storage.write([replace(one, cost_nano=7, outcome="success") for one in reaped[:2]])
        await storage.write(reaped[2:3])
        for row_ in reaped[1:4]:
            number, call = budgets._scripts.settle_call(replace(row_, cost_nano=11, outcome="success"))
            assert (await executor.run(number, call)).startswith(b"1 ")
        await lose_totals(redis_url)
        budgets._totals._known.clear()
        expected = 14 * 50_000 + 60_000 + 7 + 7 + 11 + 11 + 2_100_000
        await until(lambda: spent(budgets), 5, equals=expected)
        # all is swept into the ledger, which has the same then
        outboxes = [await budgets._scripts.begin_totals(number, "none", (), 500) for number in range(SHARDS)]
        await storage.write([one for begun in outboxes if begun for one in begun.rows])
        assert (await total(database))[1] == expected


async def test_builds_under_load_lose_nothing_and_count_nothing_twice(redis_url: str, postgres_url: str) -> None:
    """The sums are lost again and again while two gateways settle, write and acknowledge."""
    large = rows(replace(KIND, total_budget_nano=10**12))
    async with (
        opened(redis_url, postgres_url, large) as (one, database, _),
        opened(redis_url, postgres_url, large) as (two, _, _),
    ):
        served, over = asyncio.Event(), asyncio.Event()

        async def chat(number: int) -> None:
            budgets, turn = (one, two)[number % 2], 0
            while not over.is_set():
                turn += 1
                try:
                    reservation = await budgets.admit(ask(principal(large.by_name["ai"], user=number * 7 + turn % 50)))
                except DependencyUnavailable:
                    await asyncio.sleep(0.01)
                    continue
                await asyncio.sleep(0.001 * (number % 5))
                budgets.settle(reservation, delivered(10, turn))
                served.set()

        async def lose() -> None:
            for _ in range(12 if FULL else 6):
                served.clear()
                await lose_totals(redis_url)
                await asyncio.sleep(0.25)
                await until(served.is_set)
            over.set()

        await asyncio.gather(lose(), *(chat(number) for number in range(16)))

        async def agree() -> bool:
            cost = (await total(database))[1]
            return await spent(one) == cost == await spent(two)

        await until(agree, 20)


async def test_a_total_is_known_two_seconds_after_redis_lost_a_large_day(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url, KINDS) as (budgets, _, _):
        await known(budgets)
        sql(
            postgres_url,
            "insert into ledger select md5(n::text), 'r', lpad(to_hex(n % 50000), 32, '0') || ':ai', 'ai', 'm',"
            " 'chat', 1, 1, 3, 86400, floor(extract(epoch from now()) / 86400), 'success', now(), now()"
            f" from generate_series(1, {ROWS}) n",
        )
        client = connect(redis_url)
        await client.flushall()
        await client.aclose()
        began = time.monotonic()
        await until(lambda: spent(budgets), equals=3 * ROWS)
        assert time.monotonic() - began < 2


async def test_a_total_budget_that_is_set_within_a_period_counts_what_was_spent_and_what_is_open(
    redis_url: str, postgres_url: str
) -> None:
    """Also what a gateway admitted since that had not read the table yet, once it has."""
    two, before = rows(KIND, row("other", total_budget_nano=10**12)), rows(replace(KIND, total_budget_nano=0))
    async with opened(redis_url, postgres_url, before) as (old, _, _):
        who = principal(before.by_name["ai"])
        old.settle(await old.admit(ask(who)), delivered())
        held = await old.admit(ask(who, request_id="a||b"))
        async with opened(redis_url, postgres_url, rows(two.by_name["other"])) as (budgets, _, _):
            await until(lambda: "other:86400" in budgets._totals._known)
        async with opened(redis_url, postgres_url, two) as (budgets, _, _):
            await known(budgets)

            def amounts() -> tuple[int, int]:
                total = budgets._totals._known["ai:86400"].total
                return total.spent_nano, total.reserved_nano

            assert amounts() == (50_000, held.amount_nano)
            async with connect(redis_url) as client:
                kept = client.hget(layout.user_key(who.user_id), f"{layout.RESERVATION}{held.id}")
                assert (await kept).decode() == replace(held, total="ai:86400").packed()  # type: ignore[misc]
            late = await old.admit(ask(who))
            before.take(two)
            await until(lambda: amounts() == (50_000, held.amount_nano + late.amount_nano))
            for reservation in (held, late):
                old.settle(reservation, delivered())
            await until(lambda: amounts() == (150_000, 0))


async def test_one_gateway_reads_the_shards_for_all(redis_url: str, postgres_url: str) -> None:
    calm = dataclasses.replace(FAST, totals=0.2, sweep=3600, renew=3600)
    async with contextlib.AsyncExitStack() as stack:
        gateways = [
            (await stack.enter_async_context(opened(redis_url, postgres_url, KINDS, calm)))[0] for _ in range(4)
        ]
        for budgets in gateways:
            await known(budgets)
        client = connect(redis_url)
        before = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        await asyncio.sleep(1)
        calls = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] - before
        await client.aclose()
        assert calls < 6 * (64 + 1 + 4)
        assert all(not budgets._totals.unknown() for budgets in gateways)


async def test_the_end_of_a_period_is_that_of_redis_clock(redis_url: str, postgres_url: str) -> None:
    """A gateway whose clock is years ahead admits nobody, and names the end of Redis's period."""
    end = 1_700_006_400_000
    client = redis.Redis.from_url(redis_url)
    executor: Any = ClockedExecutor(client, end - 5_000)
    async with Database.connect(postgres_url) as database:
        totals = Totals(
            BudgetScripts(executor, 30), LedgerStorage(database), KINDS, BudgetMetrics(Registry(), KINDS),
            every=0.3,
        )  # fmt: skip
        wanted = ask(principal(KIND))
        limits = bounds(wanted, KIND.max_budget_nano)
        await totals.refresh()
        client.hincrby(layout.SHARD_KEYS[3].totals, f"s|ai:86400|{end // 86_400_000 - 1}", TOTAL)
        executor.now_ms += 1_000
        began = time.monotonic()
        await totals.refresh()
        with pytest.raises(BudgetExceeded) as caught:
            totals.check(wanted, limits)
        passed, later = time.monotonic() - began, delay(wanted.principal.user_id, 86_400)
        assert 4 - passed <= caught.value.retry_after - later <= 4.001
        executor.now_ms = end
        assert (await BudgetScripts(executor, 30).sums(["ai:86400"], 0.3)).mine, "somebody else reads the shards"
        for _ in range(2):
            await totals.refresh()
            assert totals.check(wanted, limits) == TOTAL
            executor.now_ms += 1_000
    client.close()


async def test_sums_that_were_read_more_than_three_seconds_ago_are_not_known(redis_url: str, postgres_url: str) -> None:
    """By Redis's clock, if another gateway read them and hangs."""
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = ClockedExecutor(client, 1_700_000_000_000)
        async with Database.connect(postgres_url) as database:
            scripts, wanted = BudgetScripts(executor, 30), ask(principal(KIND))
            await scripts.tell_sums(executor.now_ms, {"ai:86400": Total(19_675, 0, 0)})
            for ms, unknown in ((1_000, []), (2_001, ["ai"])):
                executor.now_ms += ms
                assert (await scripts.sums(["ai:86400"], 0.3)).mine, "somebody else"
                totals = Totals(scripts, LedgerStorage(database), KINDS, BudgetMetrics(Registry(), KINDS), every=0.3)
                await totals.refresh()
                assert totals.unknown() == unknown
            with pytest.raises(DependencyUnavailable) as caught:
                totals.check(wanted, bounds(wanted, KIND.max_budget_nano))
            assert caught.value.dependency == "redis"


async def test_sums_that_a_slower_gateway_tells_late_replace_none_that_were_read_since(
    redis_url: str, postgres_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = ClockedExecutor(client, 1_700_000_000_000)
        async with Database.connect(postgres_url) as database:
            scripts = BudgetScripts(executor, 30)
            totals = Totals(scripts, LedgerStorage(database), KINDS, BudgetMetrics(Registry(), KINDS), every=0.3)
            for late_ms, spent_nano in ((0, 5), (200, 4)):
                await scripts.tell_sums(executor.now_ms - late_ms, {"ai:86400": Total(19_675, spent_nano, 0)})
                await totals.refresh()
                assert totals._known["ai:86400"].total.spent_nano == 5


async def test_good_sums_are_read_without_postgresql(unused_port: int, redis_url: str, postgres_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = ClockedExecutor(client, 1_700_000_000_000)
        async with (
            Database.connect(postgres_url) as database,
            Database.connect(f"postgresql://127.0.0.1:{unused_port}/none") as gone,
        ):
            for one in (database, gone):
                totals = Totals(
                    BudgetScripts(executor, 30), LedgerStorage(one), KINDS, BudgetMetrics(Registry(), KINDS), every=0.3
                )
                await totals.refresh()
                executor.now_ms += 1_000
            assert totals._known["ai:86400"].total == Total(19_675, 0, 0)
            assert gone.state.reason is None


async def test_without_a_total_budget_neither_redis_nor_postgresql_is_asked() -> None:
    nothing: Any = None
    running = asyncio.create_task(Totals(nothing, nothing, rows(), BudgetMetrics(Registry(), rows()), every=3600).run())
    await asyncio.sleep(0)
    assert not running.done()
    running.cancel()


class LateExecutor(ClockedExecutor):
    """A Redis that the first call of a script reaches ``late`` ms late, which take ``seconds`` here."""

    script, late, seconds = "", 0, 0.0

    async def run(self, shard: int, call: ScriptCall) -> Any:
        if call.script.name == self.script:
            self.script = ""
            await asyncio.sleep(self.seconds)
            self.now_ms += self.late
        return await super().run(shard, call)


async def test_a_slow_redis_does_not_end_a_period_early(redis_url: str, postgres_url: str) -> None:
    end = 1_700_006_400_000
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = LateExecutor(client, end - 5_000)
        async with Database.connect(postgres_url) as database:
            totals = Totals(
                BudgetScripts(executor, 30), LedgerStorage(database), KINDS, BudgetMetrics(Registry(), KINDS),
                every=0.3,
            )  # fmt: skip
            await totals.refresh()
            client.hincrby(layout.SHARD_KEYS[3].totals, f"s|ai:86400|{end // 86_400_000 - 1}", TOTAL)
            executor.now_ms = end - 1_600
            executor.script, executor.late, executor.seconds = "sums", 900, 0.9
            await totals.refresh()
            wanted = ask(principal(KIND))
            with pytest.raises(BudgetExceeded):
                totals.check(wanted, bounds(wanted, KIND.max_budget_nano))


async def test_sums_that_are_emptied_after_a_periods_end_are_built_for_the_new_one(
    redis_url: str, postgres_url: str
) -> None:
    """The gateway reads the clock before the end. A request of the new period is in the ledger already."""
    end = 1_700_006_400_000
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = LateExecutor(client, end - 5_000)
        executor.script, executor.late = "totals_begin", 5_010
        who = principal(KIND, user=next(user for user in itertools.count() if shard(f"{user:032x}") == 0))
        async with Database.connect(postgres_url) as database:
            storage = LedgerStorage(database)
            for at, cost in (end - 1, 5), (end + 3, 7), (end + 86_400_000, 9):
                made = Reservation(ask(who), 1, 1, 86_400, at, RateLimits(0, 0, 0, 0, 0, 0), "ai:86400")
                await storage.write([replace(made.row(Charge(cost, 1, 1, 1), Outcome.SUCCESS), settled_ms=end + 4)])
            totals = Totals(BudgetScripts(executor, 30), storage, KINDS, BudgetMetrics(Registry(), KINDS), every=0.3)
            await totals.refresh()
            executor.now_ms += 1_000
            await totals.refresh()
            assert totals._known["ai:86400"].total.spent_nano == 7


@pytest.mark.parametrize("leader", ["the new one", "another"])
async def test_what_old_gateways_of_a_rollout_admit_without_the_total_is_counted_in_about_ten_minutes(
    redis_url: str, postgres_url: str, leader: str
) -> None:
    """Whoever reads the shards, and without a moment in which the sums are not known."""
    who = principal(KIND)
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = NotingExecutor(client, 1_700_000_000_000)  # 100 s before five minutes are full
        async with Database.connect(postgres_url) as database:
            scripts, storage = BudgetScripts(executor, 3600), LedgerStorage(database)

            def started() -> Totals:
                return Totals(scripts, storage, KINDS, BudgetMetrics(Registry(), KINDS), every=0.3)

            def held() -> Reservation:  # by an old gateway
                return Reservation(ask(who), 1, 9, 86_400, executor.now_ms, RateLimits(0, 0, 0, 0, 0, 0), "")

            async def settle() -> None:
                await executor.run(*scripts.settle_call(held().row(Charge(50_000, 1, 1, 1), Outcome.SUCCESS)))

            async def after(ms: int) -> Total:
                executor.now_ms += ms
                if leader == "another":
                    assert (await scripts.sums(["ai:86400"], 0.3)).mine
                await new.refresh()
                return new._known["ai:86400"].total

            await settle()
            first = started()
            for _ in range(2):
                await first.refresh()
                executor.now_ms += 1_000
            assert first._known["ai:86400"].total.spent_nano == 50_000
            new = started()
            await after(0)
            for _ in range(3):
                await settle()
            await scripts.renew(layout.of_user(who.user_id).number, [held()])
            assert (await after(390_000)).spent_nano == 50_000
            assert (await after(40_000)).spent_nano == 50_000, "known while they are built"
            assert (await after(30_000)).spent_nano == 200_000
            assert new._known["ai:86400"].total.reserved_nano == 9
            builds = client.hget(layout.SHARD_KEYS[0].totals, "b|ai:86400")
            for _ in range(3):
                await after(300_000)
                await first.refresh()
            assert client.hget(layout.SHARD_KEYS[0].totals, "b|ai:86400") == builds, "once for all that started"
            assert new._again is None
            executor.reads = 0
            await after(1_000)
            assert executor.reads == (0 if leader == "another" else SHARDS)


async def test_a_total_that_a_gateway_has_by_reload_is_built_though_another_reads_the_shards(
    redis_url: str, postgres_url: str
) -> None:
    who, before = principal(KIND), rows(replace(KIND, total_budget_nano=0))
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = ClockedExecutor(client, 1_700_000_000_000)
        async with Database.connect(postgres_url) as database:
            scripts, storage = BudgetScripts(executor, 30), LedgerStorage(database)
            old = Totals(scripts, storage, before, BudgetMetrics(Registry(), before), every=0.3)
            for _ in range(2):
                await Totals(scripts, storage, KINDS, BudgetMetrics(Registry(), KINDS), every=0.3).refresh()
                executor.now_ms += 1_000
            made = Reservation(ask(who), 1, 1, 86_400, executor.now_ms, RateLimits(0, 0, 0, 0, 0, 0), "")
            await executor.run(*scripts.settle_call(made.row(Charge(7, 1, 1, 1), Outcome.SUCCESS)))
            before.take(KINDS)
            for _ in range(2):
                old._take_table()
                executor.now_ms += 1_000
                assert (await scripts.sums(["ai:86400"], 0.3)).mine, "somebody else"
                await old.refresh()
            assert old._known["ai:86400"].total.spent_nano == 7


@contextlib.contextmanager
def without_sums(postgres_url: str) -> Iterator[None]:
    """Within the block PostgreSQL can't say what was spent."""
    with contextlib.closing(psycopg2.connect(postgres_url)) as connection:
        connection.autocommit = True
        connection.cursor().execute("alter table ledger_totals rename to hidden")
        yield
        connection.cursor().execute("alter table hidden rename to ledger_totals")


@contextlib.asynccontextmanager
async def hung(postgres_url: str) -> AsyncIterator[Database]:
    """A PostgreSQL whose connection was made, and which says nothing more."""
    parts = urlsplit(postgres_url)
    assert parts.port
    async with Gate(parts.port) as gate:
        url = parts._replace(netloc=parts.netloc.replace(str(parts.port), str(gate.port))).geturl()
        async with Database.connect(url, timeout=0.3) as database:
            await until(lambda: database.fetch(Query.text("select 1")), despite=[DependencyUnavailable])
            gate.latency = 3600
            yield database
            assert database.state.reason, "nothing was asked of it"


@pytest.mark.parametrize("trouble", ["no ledger", "a ledger that hangs", "many rows wait"])
async def test_good_sums_are_not_emptied_while_they_can_not_be_built(
    redis_url: str, postgres_url: str, trouble: str
) -> None:
    who = principal(KIND)
    keys = layout.of_user(who.user_id)
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = ClockedExecutor(client, 1_700_000_000_000)
        async with Database.connect(postgres_url) as database:
            scripts = BudgetScripts(executor, 3600)
            totals = Totals(scripts, LedgerStorage(database), KINDS, BudgetMetrics(Registry(), KINDS), every=0.3)
            for _number in range(51 if trouble == "many rows wait" else 1):
                made = Reservation(ask(who), 1, 1, 86_400, executor.now_ms, RateLimits(0, 0, 0, 0, 0, 0), "")
                await executor.run(*scripts.settle_call(made.row(Charge(7, 1, 1, 1), Outcome.SUCCESS)))
            await totals.refresh()
            built = client.hgetall(keys.totals)
            assert built
            async with contextlib.AsyncExitStack() as stack:
                unable = totals
                if trouble == "no ledger":
                    stack.enter_context(without_sums(postgres_url))
                elif trouble == "a ledger that hangs":
                    storage = LedgerStorage(await stack.enter_async_context(hung(postgres_url)))
                    unable = Totals(scripts, storage, KINDS, BudgetMetrics(Registry(), KINDS), every=0.3)
                    await unable.refresh()
                executor.now_ms += 600_000
                # another gateway has built a part
                client.hset(layout.SHARD_KEYS[keys.number - 1].totals, "b|ai:86400", executor.now_ms)
                await unable.refresh()
                client.delete(keys.outbox)
                executor.now_ms += 1_000
                await unable.refresh()
            assert client.hgetall(keys.totals) == built
            executor.now_ms += 29_000
            await totals.refresh()
            assert client.hget(keys.totals, "b|ai:86400") == str(executor.now_ms).encode()


@pytest.mark.parametrize(("waiting", "built"), [(500, True), (501, False)])
async def test_lost_sums_of_a_shard_are_built_when_no_more_than_500_of_its_rows_wait(
    redis_url: str, postgres_url: str, waiting: int, built: bool
) -> None:
    keys = layout.of_user(principal(KIND).user_id)
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = ClockedExecutor(client, 1_700_000_000_000)
        async with Database.connect(postgres_url) as database:
            scripts = BudgetScripts(executor, 3600)
            for _ in range(waiting):
                made = Reservation(ask(principal(KIND)), 1, 1, 86_400, 1, RateLimits(0, 0, 0, 0, 0, 0), "")
                await executor.run(*scripts.settle_call(made.row(Charge(7, 1, 1, 1), Outcome.SUCCESS)))
            await Totals(scripts, LedgerStorage(database), KINDS, BudgetMetrics(Registry(), KINDS), every=0.3).refresh()
            assert client.hexists(keys.totals, "b|ai:86400") == built


async def test_the_gateways_of_a_rollout_do_not_build_at_one_moment(redis_url: str, postgres_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = ClockedExecutor(client, 1_700_000_000_000)
        async with Database.connect(postgres_url) as database:
            scripts, storage = BudgetScripts(executor, 30), LedgerStorage(database)
            gateways = [Totals(scripts, storage, KINDS, BudgetMetrics(Registry(), KINDS), every=0.3) for _ in range(9)]
            for gateway in gateways:
                executor.now_ms += 1
                await gateway.refresh()
            assert client.hget(layout.SHARD_KEYS[0].totals, "b|ai:86400") == b"1700000000001", "built once"
            times = [gateway._try_at for gateway in gateways]
            assert len(set(times)) > 4
            assert {gateway._again for gateway in gateways} == {1_700_000_400_000}
            assert 1_700_000_400_000 <= min(times) <= max(times) < 1_700_000_430_000


class NotingExecutor(ClockedExecutor):
    """A Redis that notes how often the sums of a shard are read, or emptied."""

    reads = 0

    async def run(self, shard: int, call: ScriptCall) -> Any:
        self.reads += call.script.name in ("totals", "totals_begin")
        return await super().run(shard, call)


async def test_a_new_total_is_not_asked_for_at_each_reading_while_it_can_not_be_built(
    redis_url: str, postgres_url: str
) -> None:
    before = rows(replace(KIND, total_budget_nano=0))
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = NotingExecutor(client, 1_700_000_000_000)
        async with Database.connect(postgres_url) as database:
            scripts = BudgetScripts(executor, 30)
            totals = Totals(scripts, LedgerStorage(database), before, BudgetMetrics(Registry(), before), every=0.3)
            before.take(KINDS)
            totals._take_table()

            async def after(ms: int) -> int:
                executor.now_ms += ms
                assert (await scripts.sums(["ai:86400"], 0.3)).mine, "somebody else"
                await totals.refresh()
                return int(executor.reads)

            with without_sums(postgres_url):
                assert [await after(1_000) for _ in range(3)] == [SHARDS] * 3
            assert await after(30_000) == 3 * SHARDS
            assert [await after(1_000) for _ in range(2)] == [4 * SHARDS] * 2
            assert totals._known["ai:86400"].total == Total(19_675, 0, 0)


async def test_one_gateway_builds_while_the_others_wait(redis_url: str, postgres_url: str) -> None:
    """Whatever rows of other service types the outbox has."""
    with redis.Redis.from_url(redis_url) as client, contextlib.closing(psycopg2.connect(postgres_url)) as another:
        executor: Any = ClockedExecutor(client, 1_700_000_000_000)
        another.cursor().execute("select pg_advisory_xact_lock(1296846933)")
        async with Database.connect(postgres_url) as database:
            scripts, storage = BudgetScripts(executor, 30), LedgerStorage(database)
            made = Reservation(ask(principal(row("other"))), 1, 1, 86_400, 1, RateLimits(0, 0, 0, 0, 0, 0), "")
            await executor.run(*scripts.settle_call(made.row(Charge(7, 1, 1, 1), Outcome.SUCCESS)))
            totals = Totals(scripts, storage, KINDS, BudgetMetrics(Registry(), KINDS), every=0.3)
            await totals.refresh()
            assert not client.exists(layout.SHARD_KEYS[0].totals)
            another.rollback()
            for _ in range(2):
                executor.now_ms += 1_000
                await totals.refresh()
            assert client.exists(layout.SHARD_KEYS[0].totals)
            assert totals._known["ai:86400"].read_at <= time.monotonic()


class CutExecutor(ClockedExecutor):
    """A Redis that ``cut`` is called before, the first time that sums of a shard are emptied."""

    cut: Callable[[], Awaitable[None]] | None = None

    async def run(self, shard: int, call: ScriptCall) -> Any:
        if call.script.name == "totals_begin" and self.cut is not None:
            cut, self.cut = self.cut, None
            await cut()
        return await super().run(shard, call)


async def test_a_build_counts_nothing_if_others_could_write_to_the_ledger_meanwhile(
    redis_url: str, postgres_url: str
) -> None:
    """PostgreSQL ended its transaction, say because the gateway was stopped for too long."""
    who = principal(KIND, user=next(user for user in itertools.count() if shard(f"{user:032x}") == 0))
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = CutExecutor(client, 1_700_000_000_000)
        async with Database.connect(postgres_url) as database:
            scripts, storage = BudgetScripts(executor, 30), LedgerStorage(database)
            totals = Totals(scripts, storage, KINDS, BudgetMetrics(Registry(), KINDS), every=0.3)
            made = Reservation(ask(who), 1, 1, 86_400, executor.now_ms, RateLimits(0, 0, 0, 0, 0, 0), "")
            row_ = replace(made.row(Charge(7, 1, 1, 1), Outcome.SUCCESS), settled_ms=executor.now_ms)
            await executor.run(*scripts.settle_call(row_))

            async def cut() -> None:
                sql(postgres_url, "select pg_terminate_backend(pid) from pg_locks where objid = 1296846933 and granted")
                await storage.write([row_])
                await scripts.acknowledge(0, [row_])

            executor.cut = cut
            for _ in range(3):
                await totals.refresh()
                executor.now_ms += 1_000
            assert totals._known["ai:86400"].total.spent_nano == 7


class OvertakingExecutor(ClockedExecutor):
    """A Redis that gets the first load of a build after the next build has begun; its sender gave up on it."""

    late: tuple[int, ScriptCall] | None = None

    async def run(self, shard: int, call: ScriptCall) -> Any:
        if call.script.name == "totals_load" and self.late is None:
            self.late = shard, call
            raise DependencyUnavailable("redis")
        reply = await super().run(shard, call)
        if call.script.name == "totals_begin" and self.late is not None and self.late[0] == shard:
            await super().run(*self.late)
        return reply


async def test_a_build_that_was_given_up_adds_nothing_to_the_next_one_of_the_same_gateway(
    redis_url: str, postgres_url: str
) -> None:
    now = 1_700_000_000_000
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = OvertakingExecutor(client, now)
        who = principal(KIND, user=next(user for user in itertools.count() if shard(f"{user:032x}") == 0))
        async with Database.connect(postgres_url) as database:
            storage = LedgerStorage(database)

            async def write(cost: int) -> None:
                made = Reservation(ask(who), 1, 1, 86_400, now, RateLimits(0, 0, 0, 0, 0, 0), "ai:86400")
                await storage.write([replace(made.row(Charge(cost, 1, 1, 1), Outcome.SUCCESS), settled_ms=now)])

            totals = Totals(BudgetScripts(executor, 30), storage, KINDS, BudgetMetrics(Registry(), KINDS), every=0.3)
            await write(7)
            await totals.refresh()
            assert executor.late[0] == 0
            await write(5)
            for _ in range(2):
                executor.now_ms += 1_000
                await totals.refresh()
            assert totals._known["ai:86400"].total.spent_nano == 12


async def test_the_shards_are_read_by_one_gateway_when_a_sum_is_old_or_missing(redis_url: str) -> None:
    ours = ("ai:86400", "other:86400")
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = ClockedExecutor(client, 1_700_000_000_000)
        scripts = BudgetScripts(executor, 30)

        async def after(ms: int, names: tuple[str, ...] = ours) -> bool:
            executor.now_ms += ms
            return (await scripts.sums(names, 0.3)).mine

        assert [await after(0), await after(0), await after(299)] == [True, False, False]
        assert await after(1), "the one that was to read them did not"
        await scripts.tell_sums(executor.now_ms, {ours[0]: Total(3, 4, 5)})
        assert (await scripts.sums(ours, 0.3)).known == {ours[0]: (executor.now_ms, Total(3, 4, 5))}
        assert not await after(100), "another one reads the missing one"
        client.hdel(layout.SHARD_KEYS[0].sums, layout.READING)
        assert not await after(0, ours[:1]), "it is fresh"
        assert await after(0), "one is missing"
        client.hdel(layout.SHARD_KEYS[0].sums, layout.READING)
        assert await after(0, ours[::-1]), "whichever it is"
        await scripts.tell_sums(executor.now_ms, dict.fromkeys(ours, Total(3, 4, 5)))
        client.hdel(layout.SHARD_KEYS[0].sums, layout.READING)
        assert [await after(299), await after(1)] == [False, True]
        assert await after(-3_600_000), "the clock went back"


async def test_a_build_empties_its_own_sums_alone_and_waits_while_too_many_rows_do(redis_url: str) -> None:
    ours, other = "ai:86400", "other:86400"
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = ClockedExecutor(client, 1_700_000_000_000)
        scripts, who = BudgetScripts(executor, 30), principal(KIND)
        number, keys = shard(who.identity), layout.of_user(who.user_id)

        def held(total: str) -> Reservation:
            return Reservation(ask(who), 1, 1, 86_400, executor.now_ms, RateLimits(0, 0, 0, 0, 0, 0), total)

        def sums() -> dict[str, str]:
            found = {name.decode(): value.decode() for name, value in client.hgetall(keys.totals).items()}
            return {name: value for name, value in found.items() if name[1] == "|"}

        async def begin(most: int) -> TotalsBegun | None:
            return await scripts.begin_totals(number, "me", [ours], most)

        await scripts.renew(number, [open_ := held(ours), held(other), held(ours)])
        for _ in range(2):
            await executor.run(*scripts.settle_call(held("").row(Charge(5, 1, 1, 0), Outcome.SUCCESS)))
        client.delete(keys.totals)
        foreign = {f"b|{other}": "1", f"s|{other}|1": "9"}
        client.hset(keys.totals, mapping={layout.EPOCH: "epoch1", f"b|{ours}": "1", f"s|{ours}|1": "4", **foreign})
        assert await begin(1) is None
        assert sums() == {f"b|{ours}": "1", f"s|{ours}|1": "4", **foreign}
        begun = await begin(2)
        assert begun is not None
        assert (begun.now_ms, begun.open, len(begun.rows)) == (executor.now_ms, [(ours, open_.admitted_ms, 1)] * 2, 2)
        assert sums() == foreign
        await scripts.load_totals(number, "you", [ours], {f"s|{ours}|1": 3}, 5)
        assert sums() == foreign
        executor.current_epoch = "epoch2"
        assert await begin(2) is not None
        assert sums() == {}
        for _ in range(2):
            await scripts.load_totals(number, "me", [ours], {f"s|{ours}|1": 3}, 5)
        assert sums() == {f"b|{ours}": "5", f"s|{ours}|1": "3"}
        found = await scripts.totals(number, [ours, other, ours], [5, 0, 6])
        assert [found[1] > 0, found[4], found[7]] == [True, -1, -1]
        executor.current_epoch = "epoch3"
        assert (await scripts.totals(number, [ours], [0]))[1] == -1


async def test_the_totals_are_in_the_metrics(redis_url: str, postgres_url: str) -> None:
    """Until a service type has none any more."""
    kinds = rows(KIND, row("other"))
    async with opened(redis_url, postgres_url, kinds) as (budgets, _, registry):
        await known(budgets)
        held = await budgets.admit(ask(principal(KIND)))
        budgets.settle(await budgets.admit(ask(principal(KIND))), delivered())

        def shown() -> list[float]:
            names = ("known", "limit_usd", "spent_usd", "reserved_usd")
            return [metric(registry, f"budget_total_{name}", service_type="ai") for name in names]

        await until(lambda: shown() == [1, 0.042, 5e-05, 0.0021])
        budgets._totals._take_table()
        assert shown() == [1, 0.042, 5e-05, 0.0021]
        await budgets.totals_known()
        kinds.take(rows(row(), row("other")))
        await until(lambda: shown() == [1, 0, 0, 0])
        budgets.settle(held, delivered())


async def test_sums_that_cannot_be_read_admit_nobody(unused_port: int, redis_url: str, postgres_url: str) -> None:
    """Until their service types have no total budget any more."""
    kinds = rows(KIND, row("other", total_budget_nano=TOTAL))
    async with opened(redis_url, f"postgresql://127.0.0.1:{unused_port}/none", kinds) as (budgets, _, registry):
        with pytest.raises(DependencyUnavailable):
            await budgets.admit(ask(principal(KIND)))
        with pytest.raises(CheckFailed, match=r"^not known yet for ai, other$"):
            await budgets.totals_known()
        assert 'budget_total_spent_usd{service_type="ai"}' in series(registry)
        await until(lambda: metric(registry, "budget_total_limit_usd", service_type="ai"), equals=0.042)
        kinds.take(rows())
        await until(lambda: metric(registry, "budget_total_known", service_type="ai"), equals=1)
        assert registry.background_failures.value("totals") == 0
