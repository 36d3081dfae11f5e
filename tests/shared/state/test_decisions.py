"""Auth's forecast for a request is the gateway's decision."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

import pytest

from services.gateway.budget.charging import Charge
from services.gateway.budget.models import Ask, RateLimits, Reservation
from services.gateway.budget.scripts import BudgetScripts, UserBuild
from services.gateway.budget.services import Budgets
from services.gateway.errors import BudgetExceeded, InvalidToken, RateLimited, RequestTooLarge, UserBlocked
from services.gateway.tokens.models import Principal
from services.local.valkey import ValkeyServer
from shared.domain.identity import shard
from shared.domain.service_types import ServiceType
from shared.errors import ServiceError
from shared.state import decisions, layout
from shared.state.decisions import Outlook, Recorded
from shared.state.layout import Standing
from shared.state.packed import Excepted
from shared.stores.redis import Client
from tests.services.gateway.budget.clocked import ClockedClient, ClockedExecutor
from tests.services.gateway.budget.support import BudgetReserved, ask, delivered, opened, principal, row, rows
from tests.support.waiting import until

if TYPE_CHECKING:
    from services.gateway.redis.executor import Executor

#: What ``ask()`` has to reserve at the least.
LEAST, EMPTY = 100 * 1000 + 16 * 2000, 16 * 2000


async def outlook(client: Client, kind: ServiceType, recorded: Recorded | None = None) -> Outlook:
    who = principal(kind)
    recorded = recorded or Recorded(kind.name, Standing.GOOD, 0, [who.jti])
    found = await decisions.outlook(client, who.user_id, {kind.name: kind}, recorded, least=LEAST, empty=EMPTY)
    assert found is not None
    return found


async def block(client: Client, budgets: Budgets, who: Principal) -> None:
    await decisions.set_standing(client, who.identity, Standing.BLOCKED)


async def revoke_device(client: Client, budgets: Budgets, who: Principal) -> None:
    await decisions.set_standing(client, who.identity, Standing.REVOKED)


async def revoke_token(client: Client, budgets: Budgets, who: Principal) -> None:
    await decisions.revoke_token(client, who.identity, who.jti, time.time() + 60)


async def hold_one(client: Client, budgets: Budgets, who: Principal) -> None:
    await budgets.admit(ask(who))


async def settle_one(client: Client, budgets: Budgets, who: Principal) -> None:
    budgets.settle(await budgets.admit(ask(who)), delivered())
    assert await budgets._queue.all_settled(5)


async def settle_all(client: Client, budgets: Budgets, who: Principal) -> None:
    """A charge that leaves less than an empty prompt costs."""
    reservation = await budgets.admit(ask(who))
    budgets.settle(reservation, delivered(50 + 100 + 1, 0))
    assert await budgets._queue.all_settled(5)


Act = Callable[[Client, Budgets, Principal], Awaitable[None]]


@pytest.mark.parametrize(
    ("kind", "act", "refusal", "reasons"),
    [
        (row(), block, UserBlocked, {"blocked"}),
        (row(), revoke_device, UserBlocked, {"revoked"}),
        (row(), revoke_token, InvalidToken, {"token"}),
        (row(max_streams=1), hold_one, RateLimited, {"streams"}),
        (row(rpm=1), settle_one, RateLimited, {"rpm"}),
        (row(tpm=30), settle_one, RateLimited, {"tpm"}),
        (row(max_budget_nano=50_000 + LEAST - 1), settle_one, RequestTooLarge, {"large"}),
        (row(max_budget_nano=50_000 + LEAST), settle_all, BudgetExceeded, {"exceeded"}),
        (row(max_budget_nano=2_100_000 + LEAST - 1), hold_one, BudgetReserved, {"reserved"}),
        (row(max_streams=1, rpm=1), hold_one, RateLimited, {"streams", "rpm"}),
        (row(), settle_one, None, set()),
    ],
    ids=lambda value: "+".join(sorted(value)) or "nothing" if isinstance(value, set) else "",
)
async def test_what_a_user_is_refused_for_is_known_beforehand(
    redis: Client,
    redis_url: str,
    postgres_url: str,
    kind: ServiceType,
    act: Act,
    refusal: type[ServiceError] | None,
    reasons: set[str],
) -> None:
    who = principal(kind)
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, _, _):
        first = ask(who, prompt_bound=0, estimated_prompt_tokens=0, limit=1)  # the user's state is in Redis from here
        held = await budgets.admit(first) if act not in (hold_one, settle_one, settle_all) else None
        await act(redis, budgets, who)
        found = await outlook(redis, kind)
        assert set(found.refusals) == reasons
        if refusal is None:
            budgets.settle(await budgets.admit(ask(who)), delivered())
        else:
            with pytest.raises(refusal) as refused:
                await budgets.admit(ask(who))
            assert not isinstance(refused.value, RateLimited) or refused.value.reason in reasons
        assert found.open_requests == (1 if held or act is hold_one else 0)


async def test_a_user_of_whom_redis_knows_nothing_is_judged_by_what_postgresql_has(redis: Client) -> None:
    kind = row()
    spent = kind.max_budget_nano - EMPTY + 1
    for recorded, reasons in (
        (Recorded("ai", Standing.GOOD, 0, []), set()),
        (Recorded("ai", Standing.GOOD, spent, []), {"exceeded"}),
        (Recorded("ai", Standing.BLOCKED, spent, []), {"blocked", "exceeded"}),
    ):
        assert set((await outlook(redis, kind, recorded)).refusals) == reasons


@pytest.mark.parametrize(
    ("limits", "act", "refused_before", "refused"),
    [
        ({"max_streams": 1, "rpm": 1}, hold_one, {"streams", "rpm"}, set()),
        ({"tpm": 30}, settle_one, {"tpm"}, set()),
        ({"max_budget_nano": 2_100_000 + LEAST - 1}, hold_one, {"reserved"}, {"reserved"}),
    ],
)
async def test_an_exception_without_rates_lifts_them_beforehand_too_and_no_more(
    redis: Client,
    redis_url: str,
    postgres_url: str,
    limits: dict[str, int],
    act: Act,
    refused_before: set[str],
    refused: set[str],
) -> None:
    kind = row(**limits)
    who = principal(kind)
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, _, _):
        await act(redis, budgets, who)
        assert set((await outlook(redis, kind)).refusals) == refused_before
        await decisions.set_user(redis, who.user_id, "ai", Excepted(time.time() + 60, 0, without_rates=True))
        assert set((await outlook(redis, kind)).refusals) == refused
        await decisions.set_user(redis, who.user_id, "ai", Excepted(time.time() - 1, 10**9, without_rates=True))
        assert set((await outlook(redis, kind)).refusals) == refused_before
        await decisions.set_user(redis, who.user_id, "ai", Excepted(time.time() + 60, 10**9, without_rates=False))
        assert set((await outlook(redis, kind)).refusals) == refused_before - {"reserved"}


@pytest.mark.parametrize(("ahead", "reasons"), [(60, set()), (-1, {"exceeded"})])
async def test_an_exception_of_a_user_of_whom_redis_knows_nothing_counts_until_it_ends(
    redis: Client, ahead: int, reasons: set[str]
) -> None:
    exception = Excepted(time.time() + ahead, LEAST, without_rates=False)
    recorded = Recorded("ai", Standing.GOOD, 0, [], exception)
    assert set((await outlook(redis, row(max_budget_nano=0), recorded)).refusals) == reasons


async def test_a_state_counts_only_in_periods_in_which_an_admission_would_take_it(valkey_server: ValkeyServer) -> None:
    """In a new period nothing is spent. In one that may have been spent in before, PostgreSQL knows."""
    now, day = 1_700_000_000_000, 86_400_000
    index, who = now // day, principal()
    with valkey_server.client() as sync:
        sync.flushall()
        executor, client = ClockedExecutor(sync, now), cast("Client", ClockedClient(sync))
        scripts = BudgetScripts(cast("Executor", executor), 30)

        async def load(newest: int) -> None:
            executor.now_ms = now
            build = UserBuild("ai", 86_400, index, 1, newest, Standing.GOOD, {})
            assert await scripts.load(who.user_id, await scripts.snapshot(who.user_id), build)

        async def reasons(at: int, recorded: int, budget: int = LEAST, seconds: int = 86_400) -> set[str]:
            return set((await forecast(at, recorded, budget, seconds)).refusals)

        async def forecast(at: int, recorded: int, budget: int, seconds: int = 86_400) -> Outlook:
            executor.now_ms = at
            kind = row(max_budget_nano=budget, duration_seconds=seconds)
            return await outlook(client, kind, Recorded("ai", Standing.GOOD, recorded, []))

        await load(index)
        assert await reasons(now, 0) == {"large"}
        assert await reasons(now + day, 1) == set()
        assert await reasons(now + day, 1, LEAST - 1) == {"large"}
        assert [await reasons(now - day, recorded) for recorded in (0, 1)] == [set(), {"large"}]
        assert await reasons(now, 1, seconds=3600) == {"large"}, "the tier has other periods now"
        assert (await forecast(now + day, 0, EMPTY - 1)).refusals == {
            "exceeded": (index + 2) * 86_400 - now / 1000 - 86_400
        }
        await load(index + 1)
        assert await reasons(now + day, 1) == {"large"}

        executor.now_ms = now
        held, settled = (Reservation(ask(who), 1, 10, 86_400, now, RateLimits(0, 0, 0, 0, 0, 0), "") for _ in range(2))
        await scripts.renew(shard(who.identity), [held])
        await executor.run(*scripts.settle_call(settled.row(Charge(5, 1, 1, 8), "success")))
        executor.current_epoch = "epoch2"
        sync.hdel(layout.user_key(who.user_id), layout.USED_TOKENS)
        found = await forecast(now, 0, LEAST + 10)
        assert (found.refusals, found.requests, found.tokens, found.open_requests) == ({}, 0, 8 + 25, 1)
        assert await reasons(now, 0, LEAST + 9) == {"reserved"}


async def test_a_row_that_is_not_enforced_refuses_only_the_blocked_beforehand(
    redis: Client, redis_url: str, postgres_url: str
) -> None:
    limits = {"max_streams": 1, "rpm": 1, "tpm": 1, "max_budget_nano": 1}
    kind = row(enforce=False, enforce_until=time.time() + 60, **limits)
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, _, _):
        await hold_one(redis, budgets, principal(kind))
        assert (await outlook(redis, kind)).refusals == {}
        assert len((await outlook(redis, row(**limits))).refusals) == 4
        await block(redis, budgets, principal(kind))
        assert set((await outlook(redis, kind)).refusals) == {"blocked"}


async def test_the_tier_that_redis_knows_decides(redis: Client, redis_url: str, postgres_url: str) -> None:
    kinds = rows(row(), row("poor", max_budget_nano=EMPTY - 1))
    who = principal(kinds.by_name["ai"])
    async with opened(redis_url, postgres_url, kinds) as (budgets, _, _):
        await settle_one(redis, budgets, who)
        await decisions.set_user(redis, who.user_id, "poor")
        recorded = Recorded("ai", Standing.GOOD, 0, [])
        found = await decisions.outlook(redis, who.user_id, kinds.by_name, recorded, least=LEAST, empty=EMPTY)
        assert found is not None
        assert set(found.refusals) == {"exceeded"}


@pytest.mark.parametrize(
    ("budget", "act", "refusal", "reason"),
    [
        (50_000 + LEAST - 1, settle_one, RequestTooLarge, "total_large"),
        (50_000 + LEAST, settle_all, BudgetExceeded, "total_exceeded"),
        (2_100_000 + LEAST - 1, hold_one, BudgetReserved, "total_reserved"),
    ],
)
async def test_what_all_users_together_are_refused_for_is_known_beforehand(
    redis: Client, redis_url: str, postgres_url: str, budget: int, act: Act, refusal: type[ServiceError], reason: str
) -> None:
    kind = row(total_budget_nano=budget)
    assert set((await outlook(redis, kind)).refusals) == {"total_unknown"}
    async with opened(redis_url, postgres_url, rows(kind)) as (budgets, _, _):
        await until(lambda: bool(budgets._totals._known))
        assert (await outlook(redis, kind)).refusals == {}
        await act(redis, budgets, principal(kind, user=2))

        async def refused() -> bool:
            try:
                budgets.settle(await budgets.admit(_small(principal(kind))), delivered(0, 0))
            except refusal:
                return True
            return False

        await until(refused)
        assert set((await outlook(redis, kind)).refusals) == {reason}


async def test_an_answer_about_an_identity_is_kept_unless_a_decision_came_in_between(redis: Client) -> None:
    who, other = principal().identity, principal(user=2).identity
    key = layout.identity_key(who)
    unknown = await decisions.known(redis, who, "ai")
    assert (unknown.standing, unknown.user) == (None, False)
    assert await decisions.remember(redis, who, "ai", Standing.GOOD, unknown.version)
    assert layout.IDLE - 60 <= await redis.ttl(key) <= layout.IDLE
    found = await decisions.known(redis, who, "ai")
    assert (found.standing, found.user) == (Standing.GOOD, True)
    assert not (await decisions.known(redis, who, "s2s")).user
    await redis.expire(key, 100)
    assert await decisions.set_standing(redis, who, Standing.BLOCKED)
    assert await redis.ttl(key) <= 100
    assert not await decisions.remember(redis, who, "ai", Standing.GOOD, found.version)
    blocked = await decisions.known(redis, who, "ai")
    assert blocked.standing is Standing.BLOCKED
    assert await decisions.remember(redis, who, "s2s", Standing.BLOCKED, blocked.version)
    assert not (await decisions.known(redis, who, "s2s")).user, "nobody blocked gets in by what Redis knows"
    await redis.hset(key, f"{layout.KNOWN_USER}s2s", "the run id of another server")  # type: ignore[misc]
    assert not (await decisions.known(redis, who, "s2s")).user

    assert await decisions.set_standing(redis, other, Standing.BLOCKED, version="0")
    assert layout.IDLE - 60 <= await redis.ttl(layout.identity_key(other)) <= layout.IDLE
    assert not await decisions.set_standing(redis, other, Standing.GOOD, version="0")
    assert not await decisions.set_standing(redis, other, Standing.GOOD, version="2")
    assert await decisions.set_standing(redis, other, Standing.GOOD, version="1")


async def test_amounts_are_told_only_of_a_state_that_this_server_built(
    redis: Client, redis_url: str, postgres_url: str
) -> None:
    user_id = principal().user_id
    async with opened(redis_url, postgres_url) as (budgets, _, _):
        assert await decisions.read_users(redis, [user_id]) == [None]
        await settle_one(redis, budgets, principal())
        held = await budgets.admit(ask())
        (found,) = await decisions.read_users(redis, [user_id])
        assert found is not None
        assert (found.tier, found.spent_nano, found.reserved_nano) == ("ai", 50_000, held.amount_nano)
        assert found.period_index == held.admitted_ms // 1000 // found.period_seconds
        budgets.settle(held, delivered())
        assert await budgets._queue.all_settled(5)
        await redis.hset(layout.user_key(user_id), layout.EPOCH, "another server")  # type: ignore[misc]
        assert await decisions.read_users(redis, [user_id]) == [None]


def _small(who: Principal) -> Ask:
    return ask(who, limit=16)
