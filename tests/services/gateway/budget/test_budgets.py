"""Budgets on a real Valkey and PostgreSQL, as the relay uses them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from services.gateway.budget.models import Delivery, Reservation, Timings, Usage
from services.gateway.budget.resets import delay
from services.gateway.budget.services import Budgets
from services.gateway.catalogue import price_fields
from services.gateway.catalogue.prices import PricedModel
from services.gateway.errors import BudgetExceeded, InvalidToken, RateLimited, RequestTooLarge, UserBlocked
from services.gateway.tokens.models import Principal
from shared.domain.identity import shard
from shared.errors import DependencyUnavailable
from shared.state import decisions, layout
from shared.state.decisions import Oldest
from shared.state.layout import Standing
from shared.stores.postgres import Query
from shared.stores.redis import Client, connect
from shared.telemetry.metrics import Registry
from tests.services.gateway.budget.support import (
    FAST,
    BudgetReserved,
    ask,
    delivered,
    ledger,
    opened,
    principal,
    row,
    rows,
    served,
    total,
)
from tests.support.exposition import metric
from tests.support.waiting import until

#: A gateway that neither renews nor sweeps in time.
SLEEPY = Timings(lease=0.3, renew=60, flush=0.02, sweep=60)


async def idle(url: str) -> None:
    """Until no reservation is open and no row is on its way."""
    client = connect(url)

    async def done() -> bool:
        return not [key async for key in client.scan_iter("*") if key.endswith((b"leases", b"outbox"))]

    await until(done)
    await client.aclose()


async def test_a_request_is_reserved_settled_and_written(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url) as (budgets, database, registry):
        reservation = await budgets.admit(ask())
        assert (reservation.grant, reservation.amount_nano, reservation.lowered) == (1000, 2_100_000, False)
        assert reservation.rate_limits.headers() == {}
        state = await budgets.state(principal())
        assert (state.spent_nano, state.reserved_nano, state.remaining_nano) == (0, 2_100_000, 97_900_000)
        assert state.resets_at == (time.time() // 86_400 + 1) * 86_400

        assert budgets.settle(reservation, delivered()).cost_nano == 50_000
        assert budgets.settle(reservation, delivered(1, 1)).cost_nano == 3000
        await idle(redis_url)
        state = await budgets.state(principal())
        assert (state.spent_nano, state.reserved_nano) == (50_000, 0)
        (written,) = await ledger(database)
        assert written["id"] == reservation.id
        assert written["request_id"] == "client's own"
        assert written["user_id"] == principal().user_id
        assert (written["service_type"], written["model"], written["purpose"]) == ("ai", "model", "chat")
        assert (written["prompt_tokens"], written["completion_tokens"], written["cost_nano"]) == (10, 20, 50_000)
        assert (written["period_seconds"], written["period_index"]) == (86_400, reservation.period_index)
        assert written["outcome"] == "success"
        assert written["admitted_at"].timestamp() == pytest.approx(reservation.admitted_ms / 1000, abs=0.001)
        assert written["admitted_at"] <= written["settled_at"]
        assert b'budget_spend_usd_total{service_type="ai"} 5e-05' in registry.render()


async def test_what_the_budget_can_still_pay_for_is_granted(redis_url: str, postgres_url: str) -> None:
    """Down to the least that a request needs; then only reservations, or the spending itself, stand in the way."""
    async with opened(redis_url, postgres_url, rows(max_budget_nano=3_000_000)) as (budgets, _, registry):
        first = await budgets.admit(ask())
        second = await budgets.admit(ask())
        assert (second.grant, second.amount_nano, second.lowered) == (400, 900_000, True)
        with pytest.raises(BudgetReserved) as reserved:
            await budgets.admit(ask())
        assert reserved.value.headers["Retry-After"] == "1"
        budgets.settle(first, delivered(100, 950))
        budgets.settle(second, delivered(100, 400))
        await idle(redis_url)
        third = await budgets.admit(ask(prompt_bound=60))
        assert (third.grant, third.amount_nano) == (20, 100_000)
        budgets.settle(third, delivered(60, 20))
        await idle(redis_url)
        with pytest.raises(BudgetExceeded) as exceeded:
            await budgets.admit(ask(limit=1, prompt_bound=0))
        left = (time.time() // 86_400 + 1) * 86_400 - time.time()
        assert exceeded.value.retry_after == pytest.approx(left + delay(principal().user_id, 86_400), abs=2)
        text = registry.render()
        assert b'budget_refusals_total{reason="budget_reserved",service_type="ai"} 1' in text
        assert b'budget_refusals_total{reason="budget_exceeded",service_type="ai"} 1' in text
        assert b"budget_overrun_usd_total 0" in text


async def test_a_prompt_that_may_cost_more_than_is_left_is_too_large_as_long_as_a_shorter_one_fits(
    redis_url: str, postgres_url: str
) -> None:
    async with opened(redis_url, postgres_url, rows(max_budget_nano=3_000_000, rpm=40)) as (budgets, _, registry):
        for large in (ask(prompt_bound=10**6), ask(prompt_bound=10**9)):
            with pytest.raises(RequestTooLarge) as caught:
                await budgets.admit(large)
            assert (caught.value.status, caught.value.code) == (413, "request_too_large")
            assert "Retry-After" not in caught.value.headers
            assert "x-ratelimit-limit-requests" in caught.value.headers
        held = await budgets.admit(ask())
        with pytest.raises(BudgetReserved):
            await budgets.admit(ask(prompt_bound=2000))
        budgets.settle(held, delivered(100, 950))
        await idle(redis_url)
        with pytest.raises(RequestTooLarge):
            await budgets.admit(ask(prompt_bound=2000))
        budgets.settle(await budgets.admit(ask(prompt_bound=60)), delivered(60, 20))
        assert b'budget_refusals_total{reason="request_too_large",service_type="ai"} 3' in registry.render()


async def test_a_spent_budget_is_exceeded_for_operations_without_a_completion_too(
    redis_url: str, postgres_url: str
) -> None:
    """Embeddings by their tokens, searches by their fee; whether they fit at all is another answer."""
    fee = PricedModel("search", Decimal(0), Decimal(0), prices=price_fields.per_request(Decimal("0.00002")))
    embeddings = {"limit": 0, "prompt_bound": 20}
    search = {"model": fee, "limit": 0, "prompt_bound": 0}
    async with opened(redis_url, postgres_url, rows(max_budget_nano=20_000)) as (budgets, _, _):
        for asked in (embeddings, search):
            reservation = await budgets.admit(ask(**asked))
            assert (reservation.grant, reservation.amount_nano) == (0, 20_000)
            with pytest.raises(BudgetReserved):
                await budgets.admit(ask(**asked))
            budgets.settle(reservation, Delivery("abort", sent=False))
            await idle(redis_url)
        with pytest.raises(RequestTooLarge):
            await budgets.admit(ask(limit=0, prompt_bound=21))
        assert budgets.settle(await budgets.admit(ask(**search)), delivered(0, 0)).cost_nano == 20_000
        await idle(redis_url)
        for asked in (embeddings, search):
            with pytest.raises(BudgetExceeded):
                await budgets.admit(ask(**asked))


async def test_a_client_that_asks_for_less_than_the_least_gets_it(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url, rows(max_budget_nano=10_000)) as (budgets, _, _):
        reservation = await budgets.admit(ask(prompt_bound=0, limit=5))
        assert (reservation.grant, reservation.amount_nano) == (5, 10_000)
        budgets.settle(reservation, Delivery("abort", sent=False))


async def test_refusals_and_admissions_tell_the_rates(redis_url: str, postgres_url: str) -> None:
    kind = row(rpm=2, tpm=1000, max_streams=1)
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, _, _):
        first = await budgets.admit(ask(principal(kind)))
        assert first.rate_limits.headers() == {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-reset-requests": "1m0s",
            "x-ratelimit-limit-tokens": "1000",
            "x-ratelimit-remaining-tokens": "975",
            "x-ratelimit-reset-tokens": "0s",
        }
        with pytest.raises(RateLimited) as streams:
            await budgets.admit(ask(principal(kind)))
        assert (streams.value.reason, streams.value.retry_after) == ("streams", 1)
        budgets.settle(first, delivered(900, 90))
        second = await budgets.admit(ask(principal(kind)))
        assert second.rate_limits.headers()["x-ratelimit-remaining-tokens"] == "0"
        budgets.settle(second, Delivery("abort", sent=False))
        with pytest.raises(RateLimited) as rpm:
            await budgets.admit(ask(principal(kind)))
        assert rpm.value.reason == "rpm"
        assert rpm.value.retry_after == pytest.approx(60, abs=5)
        assert rpm.value.headers["x-ratelimit-remaining-requests"] == "0"
        assert rpm.value.headers["x-ratelimit-remaining-tokens"] == "10"


async def test_blocks_and_revocations_come_from_postgresql_at_first_sight(redis_url: str, postgres_url: str) -> None:
    kind = row(rpm=40)
    blocked, revoked, device = (principal(kind, user=user) for user in (1, 2, 3))
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, database, _):
        await database.execute(
            Query.text("insert into identities (identity, blocked_at) values (:i, now())"), i=blocked.identity
        )
        await database.execute(
            Query.text(
                "insert into revocations (jti, user_id, expires_at) values ('jti', :u, now() + interval '5 minutes')"
            ),
            u=revoked.user_id,
        )
        await database.execute(
            Query.text("insert into devices (key_id, public_key, revoked_at) values (:k, '', now())"), k=device.identity
        )
        with pytest.raises(UserBlocked) as refusal:
            await budgets.admit(ask(blocked))
        assert refusal.value.headers["x-ratelimit-limit-requests"] == "40"
        with pytest.raises(InvalidToken) as invalid:
            await budgets.admit(ask(revoked))
        assert invalid.value.headers["x-ratelimit-remaining-requests"] == "40"
        assert invalid.value.headers["WWW-Authenticate"].startswith("Bearer ")
        with pytest.raises(UserBlocked):
            await budgets.check(device)
        with pytest.raises(InvalidToken):
            await budgets.check(revoked)
        await budgets.check(dataclasses.replace(revoked, jti="another"))


async def test_a_block_and_a_revocation_end_open_requests(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url) as (budgets, _, _):
        client = connect(redis_url)
        reservations = [await budgets.admit(ask(principal(user=user))) for user in (1, 2, 3)]
        blocked, revoked, untouched = (reservation.revoked for reservation in reservations)
        await decisions.set_standing(client, principal(user=1).identity, Standing.BLOCKED)
        await decisions.revoke_token(client, principal(user=2).identity, "jti", time.time() + 60)
        ends = [type(error) for error in await asyncio.wait_for(asyncio.gather(blocked, revoked), 5)]
        assert ends == [UserBlocked, InvalidToken]
        assert not untouched.done()
        await decisions.set_standing(client, principal(user=1).identity, Standing.GOOD)
        for reservation in reservations:
            budgets.settle(reservation, delivered())
        budgets.settle(await budgets.admit(ask(principal(user=1))), delivered())
        await client.aclose()


async def test_older_tokens_are_refused_by_all_gateways_and_after_redis_was_emptied(
    redis_url: str, postgres_url: str
) -> None:
    older, good = (dataclasses.replace(principal(), issued_at=second, jti=str(second)) for second in (99, 100))
    insert = Query.text("insert into identities (identity, tokens_from_ms) values (:identity, 100999)")
    async with (
        opened(redis_url, postgres_url) as (one, database, _),
        opened(redis_url, postgres_url) as (other, _, _),
        connect(redis_url) as client,
    ):
        held = [await budgets.admit(ask(who)) for budgets in (one, other) for who in (older, good)]
        await database.execute(insert, identity=older.identity)
        await decisions.set_standing(client, older.identity, Standing.GOOD, Oldest(100))
        for emptied in (False, True):
            if emptied:
                await client.flushall()
            for budgets in (one, other):
                for refused in (budgets.admit(ask(older)), budgets.check(older)):
                    with pytest.raises(InvalidToken):
                        await refused
                held.append(await budgets.admit(ask(good)))
        ends = await asyncio.wait_for(asyncio.gather(held[0].revoked, held[2].revoked), 5)
        assert [type(error) for error in ends] == [InvalidToken] * 2
        assert not held[1].revoked.done() and not held[3].revoked.done()
        for at, reservation in enumerate(held):
            (other if at in (2, 3, 5, 7) else one).settle(reservation, delivered())


async def test_a_tier_set_by_an_operator_holds_from_the_next_request(redis_url: str, postgres_url: str) -> None:
    kinds = rows(row(), row("rich", max_budget_nano=10**12, rpm=7), row("weekly", duration_seconds=604_800))
    async with opened(redis_url, postgres_url, kinds) as (budgets, database, _):
        client = connect(redis_url)
        who = principal()
        budgets.settle(await budgets.admit(ask()), delivered())
        held = await budgets.admit(ask())
        for tier in ("rich", "weekly", "ai", "a_row_no_more"):
            await database.execute(
                Query.text(
                    "insert into users (user_id, identity, service_type, budget_tier) values (:u, :i, 'ai', :t) "
                    "on conflict (user_id) do update set budget_tier = :t"
                ),
                u=who.user_id,
                i=who.identity,
                t=tier,
            )
            await decisions.set_user(client, who.user_id, tier)
            expected = kinds.by_name.get(tier, kinds.by_name["ai"])
            seconds = expected.duration_seconds
            assert (await budgets.state(who)).resets_at == (time.time() // seconds + 1) * seconds
            reservation = await budgets.admit(ask())
            assert reservation.rate_limits.requests_limit == expected.rpm
            assert reservation.period_seconds == expected.duration_seconds
            budgets.settle(reservation, Delivery("abort", sent=False))
            state = await budgets.state(who)
            assert state.max_budget_nano == expected.max_budget_nano
            assert (state.spent_nano, state.reserved_nano >= held.amount_nano) == (50_000, True)
        budgets.settle(held, delivered())
        await client.aclose()


async def test_spending_survives_the_loss_of_redis(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url) as (budgets, database, registry):
        budgets.settle(await budgets.admit(ask()), delivered())
        await idle(redis_url)
        held = await budgets.admit(ask())
        client = connect(redis_url)
        await client.flushall()
        state = await budgets.state(principal())
        assert state.spent_nano == 50_000

        async def registered() -> bool:
            return (await budgets.state(principal())).reserved_nano == held.amount_nano

        await until(registered)
        budgets.settle(held, delivered())
        await idle(redis_url)
        assert (await budgets.state(principal())).spent_nano == 100_000
        assert await total(database) == (2, 100_000)
        assert b"budget_rebuilds_total 2" in registry.render()
        await client.aclose()


async def test_a_gateway_remembers_tiers_of_the_last_ten_thousand_users(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url) as (budgets, _, _):
        for number in (0, *range(10_001), 1):
            budgets._learn(principal(user=number), "rich", 0)
        names = [budgets._expected(principal(user=number)).name for number in (0, 1, 2, 10_000)]
        assert names == ["ai", "rich", "rich", "rich"]


async def test_a_gateway_meets_a_user_whom_another_one_serves_all_the_time(redis_url: str, postgres_url: str) -> None:
    """Each request changes what a rebuild has read. The state that the other gateway built serves both."""
    async with opened(redis_url, postgres_url) as (first, _, _), opened(redis_url, postgres_url) as (second, _, _):

        async def serve_until(met: asyncio.Event, who: Principal) -> None:
            while not met.is_set():
                await served(first, who)

        for user in range(1, 10):
            met, who = asyncio.Event(), principal(user=user)
            serving = [asyncio.create_task(serve_until(met, who)) for _ in range(8)]
            try:
                await asyncio.gather(*(served(second, who) for _ in range(5)))
            finally:
                met.set()
                await asyncio.gather(*serving)


async def test_a_user_known_nowhere_is_read_once_however_many_ask(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url) as (budgets, _, registry):
        for reservation in await asyncio.gather(*(budgets.admit(ask(limit=1)) for _ in range(30))):
            budgets.settle(reservation, Delivery("abort", sent=False))
        assert b"budget_rebuilds_total 1\n" in registry.render()


@contextlib.asynccontextmanager
async def lapsed(redis_url: str, postgres_url: str) -> AsyncIterator[tuple[Budgets, Reservation, Client, Registry]]:
    """A gateway with a request that another one has charged whole meanwhile."""
    async with (
        opened(redis_url, postgres_url, timings=SLEEPY) as (slept, database, registry),
        connect(redis_url) as client,
    ):
        reservation = await slept.admit(ask())
        async with opened(redis_url, postgres_url):
            await until(lambda: total(database), equals=(1, 2_100_000))
        yield slept, reservation, client, registry


async def test_a_request_whose_gateway_is_gone_is_charged_whole_and_lowered_once(
    redis_url: str, postgres_url: str
) -> None:
    """The dead one's lease ends; when it wakes after all, its true settlement lowers the charge."""
    async with opened(redis_url, postgres_url, timings=SLEEPY) as (dead, database, dead_registry):
        reservation = await dead.admit(ask())
        other = await dead.admit(ask())
        async with opened(redis_url, postgres_url) as (alive, _, registry):
            await until(lambda: total(database), equals=(2, 4_200_000))
            assert {one["outcome"] for one in await ledger(database)} == {"expired"}
            assert (await alive.state(principal())).spent_nano == 4_200_000
            assert b"budget_reaped_total 2" in registry.render()
            dead.settle(reservation, delivered())
            dead.settle(other, Delivery("success", sent=True, usage=Usage(10**4, 10**4)))
            await until(lambda: total(database), equals=(2, 2_150_000))
            await idle(redis_url)
            assert (await alive.state(principal())).spent_nano == 2_150_000
            assert b"budget_lowered_usd_total 0.00205" in dead_registry.render()
            assert {one["outcome"] for one in await ledger(database)} == {"expired", "success"}


async def test_a_request_that_is_withdrawn_after_it_was_charged_whole_has_one_row_and_costs_nothing(
    redis_url: str, postgres_url: str
) -> None:
    """Its gateway does not know whether, and so not when, Redis admitted it."""
    async with (
        opened(redis_url, postgres_url, timings=SLEEPY) as (unsure, database, _),
        opened(redis_url, postgres_url) as (other, _, _),
    ):
        reservation = await unsure.admit(ask())

        async def costs(nano: int) -> bool:
            return await total(database) == (1, nano)

        await until(lambda: costs(2_100_000))
        unsure._withdraw(reservation.ask, row())
        await until(lambda: costs(0))
        await idle(redis_url)
        assert (await other.state(principal())).spent_nano == 0
        assert [
            (one["cost_nano"], one["prompt_tokens"], one["completion_tokens"]) for one in await ledger(database)
        ] == [(0, 0, 0)]


async def test_a_request_that_was_charged_whole_ends_with_a_block_and_is_not_registered_again(
    redis_url: str, postgres_url: str
) -> None:
    number, user = shard(principal().identity), layout.user_key(principal().user_id)
    async with lapsed(redis_url, postgres_url) as (slept, reservation, client, registry):
        assert await slept._renewals._renew([number])
        await client.flushall()
        assert await slept._renewals._renew([number])
        assert not await client.exists(user)
        assert not reservation.revoked.done()
        await decisions.set_standing(client, principal().identity, Standing.BLOCKED)
        assert await slept._renewals._renew([number])
        assert reservation.revoked.done()
        slept.settle(reservation, delivered())
        assert metric(registry, "budget_spend_usd_total", service_type="ai") == 0, "the reaper counted it"


async def test_a_request_that_lapsed_and_whose_user_is_blocked_ends_at_once_and_is_counted_once(
    redis_url: str, postgres_url: str
) -> None:
    async with lapsed(redis_url, postgres_url) as (slept, reservation, client, registry):
        await decisions.set_standing(client, principal().identity, Standing.BLOCKED)
        assert await slept._renewals._renew([shard(principal().identity)])
        assert reservation.revoked.done()
        slept.settle(reservation, delivered())
        assert metric(registry, "budget_spend_usd_total", service_type="ai") == 0, "the reaper counted it"


async def test_nothing_in_redis_is_kept_for_ever(redis_url: str, postgres_url: str) -> None:
    """Except for the keys of which each shard has one."""
    kind = row(rpm=40, tpm=10_000)
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, _, _):
        held = [await budgets.admit(ask(principal(kind))) for _ in range(2)]
        budgets.settle(held[0], delivered())
        assert await budgets._queue.all_settled(5)
        client = connect(redis_url)
        keys = [key async for key in client.scan_iter("*")]
        lives = {key.decode().partition("}:")[2]: await client.ttl(key) for key in keys}
        await client.aclose()
        kinds = {name.partition(":")[0] for name in lives}
        assert {"u", "i", "w", "t", "d"} <= kinds
        assert {name for name, life in lives.items() if life == -1} <= {"leases", "outbox", "totals"}
        budgets.settle(held[1], delivered())


async def test_rows_left_in_an_outbox_are_finished_by_others(redis_url: str, postgres_url: str) -> None:
    silent = Timings(flush=3600, sweep=3600, drain=0)
    async with opened(redis_url, postgres_url, timings=silent) as (budgets, database, _):
        reservation = await budgets.admit(ask())
        budgets.settle(reservation, delivered())
        number = shard(principal().identity)
        client = connect(redis_url)

        async def left() -> Any:
            return await client.hlen(layout.SHARD_KEYS[number].outbox)

        await until(left)
        async with opened(redis_url, postgres_url) as (_, _, registry):
            await until(lambda: total(database), equals=(1, 50_000))
            await idle(redis_url)
            assert b"budget_outbox_oldest_seconds" in registry.render()
        await client.aclose()


async def test_costs_above_the_reservation_are_taken_and_told(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url) as (budgets, _, registry):
        reservation = await budgets.admit(ask())
        assert budgets.settle(reservation, delivered(100, 2000)).cost_nano == 4_100_000
        await idle(redis_url)
        assert (await budgets.state(principal())).spent_nano == 4_100_000
        budgets.settle(await budgets.admit(ask(principal(user=2))), delivered())
        assert metric(registry, "budget_overrun_usd_total") == 0.002


async def test_auth_reads_what_the_gateways_count(redis_url: str, postgres_url: str) -> None:
    client = connect(redis_url)
    who = principal()
    assert (await decisions.read_users(client, [who.user_id]))[0] is None
    async with opened(redis_url, postgres_url) as (budgets, _, _):
        budgets.settle(await budgets.admit(ask()), delivered())
        held = await budgets.admit(ask())
        state = (await decisions.read_users(client, [who.user_id]))[0]
        assert state is not None
        assert (state.tier, state.period_seconds, state.spent_nano, state.reserved_nano) == (
            "ai",
            86_400,
            50_000,
            2_100_000,
        )
        budgets.settle(held, delivered())
    await client.aclose()


async def test_when_nothing_more_than_the_least_fits_the_least_is_granted(redis_url: str, postgres_url: str) -> None:
    """One nano-dollar short of another token."""
    least = 100 * 1000 + 16 * 2000
    async with opened(redis_url, postgres_url, rows(max_budget_nano=least + 1999)) as (budgets, _, _):
        reservation = await budgets.admit(ask())
        assert (reservation.grant, reservation.amount_nano) == (16, least)
        budgets.settle(reservation, Delivery("abort", sent=False))


async def test_fractions_of_a_nano_dollar_are_granted_exactly(redis_url: str, postgres_url: str) -> None:
    cheap = PricedModel("cheap", Decimal(0), Decimal("0.0000000005"))
    async with opened(redis_url, postgres_url, rows(max_budget_nano=1000)) as (budgets, _, _):
        reservation = await budgets.admit(ask(model=cheap, limit=10_000))
        assert (reservation.grant, reservation.amount_nano) == (2000, 1000)
        budgets.settle(reservation, Delivery("abort", sent=False))


async def test_what_is_kept_of_a_user_goes_by_itself(redis_url: str, postgres_url: str) -> None:
    """However it came to be: by admissions, settlements, the reaper, operators, or a rebuild."""
    client = connect(redis_url)
    kind = row(rpm=100, tpm=10**6, total_budget_nano=10**12)
    shared = (b"leases", b"outbox", b"totals", b"sums", b"claim")

    async def forgotten() -> list[bytes]:
        keys = [key async for key in client.scan_iter("*") if not key.endswith(shared)]
        assert keys
        return [key for key in keys if await client.ttl(key) < 0]

    async def persist() -> None:
        """So that whatever comes next has to say again how long it may stay."""
        async for key in client.scan_iter("*:u:*"):
            await client.persist(key)

    await decisions.set_standing(client, "0" * 32, Standing.GOOD)
    await decisions.set_user(client, f"{'0' * 32}:ai", "ai")
    await decisions.revoke_token(client, "0" * 32, "j", time.time() + 60)
    assert await forgotten() == []
    await client.flushall()
    who = principal(kind)
    slow = dataclasses.replace(FAST, lease=0.5, renew=60, sweep=60)
    async with (
        opened(redis_url, postgres_url, rows(kind), slow) as (budgets, _, _),
        opened(redis_url, postgres_url, rows(kind), dataclasses.replace(slow, renew=0.1)) as (other, _, _),
    ):

        async def told() -> bool:
            try:
                await budgets.state(who)
            except DependencyUnavailable:
                return False
            return budgets._totals._known != {} and other._totals._known != {}

        await until(told)
        assert await forgotten() == []
        await persist()
        reservation = await budgets.admit(ask(who))
        assert await forgotten() == []
        await persist()
        budgets.settle(reservation, delivered())
        await budgets._queue.all_settled(5)
        assert await forgotten() == []
        held = await other.admit(ask(who))
        await persist()
        await until(lambda: forgotten(), equals=[])
        other.settle(held, delivered())
        await other._queue.all_settled(5)
        lost = await budgets.admit(ask(who))
        await persist()
        async with opened(redis_url, postgres_url, rows(kind)) as (_, database, _):

            async def reaped() -> bool:
                return (await total(database))[0] == 3

            await until(reaped)
        assert await forgotten() == []
        budgets.settle(lost, delivered())
    await client.aclose()


async def test_amounts_stay_exact_up_to_the_largest_budget(redis_url: str, postgres_url: str) -> None:
    """Lua's numbers have 53 bits, and its own way to write them 14 digits."""
    kind = row(max_budget_nano=2**52 - 1)
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, database, _):
        spent = 0
        for cost in (10**15, 999_999_999_999_999, 123_456_789_012_345):
            reservation = await budgets.admit(ask(principal(kind)))
            delivery = Delivery("success", sent=True, usage=Usage(1, 1), response_cost=Decimal(cost).scaleb(-9))
            assert budgets.settle(reservation, delivery).cost_nano == cost
            spent += cost
        await idle(redis_url)
        rest = await budgets.admit(ask(principal(kind), prompt_bound=0, limit=10**12, n=2))
        left = (2**52 - 1 - spent) // 4000
        assert (rest.grant, rest.amount_nano) == (left, left * 4000)
        state = await budgets.state(principal(kind))
        assert (state.spent_nano, state.reserved_nano) == (spent, rest.amount_nano)
        budgets.settle(rest, Delivery("abort", sent=False))
        await idle(redis_url)
        assert await total(database) == (4, spent)
