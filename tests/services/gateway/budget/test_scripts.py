"""Single stories of the scripts that chance would hardly tell."""

from __future__ import annotations

import pytest

from services.gateway.budget.charging import Charge, bounds
from services.gateway.budget.models import RateLimits, Reservation
from services.gateway.budget.refusals import Refusal
from services.gateway.budget.scripts import BudgetScripts, Expected, Snapshot, UserBuild
from services.local.valkey import ValkeyServer
from shared.domain.identity import shard
from shared.state import decisions, layout
from shared.state.layout import Standing
from shared.state.packed import Excepted
from shared.stores.redis import connect
from tests.services.gateway.budget.clocked import ClockedExecutor
from tests.services.gateway.budget.support import ask, principal

NOW = 1_700_000_000_000


async def test_a_rebuild_begun_before_redis_was_emptied_does_not_count_afterwards(valkey_server: ValkeyServer) -> None:
    """The versions of two lives of one key are never the same, however much happened in each."""
    with valkey_server.client() as client:
        client.flushall()
        executor = ClockedExecutor(client, NOW)
        scripts = BudgetScripts(executor, 30)  # type: ignore[arg-type]  # stands where Executor does
        user = principal().user_id

        async def settle() -> None:
            reservation = Reservation(ask(), 1, 1, 86_400, NOW, RateLimits(0, 0, 0, 0, 0, 0), "")
            await executor.run(*scripts.settle_call(reservation.row(Charge(5, 1, 1, 0), "success")))

        async def load(snapshot: Snapshot, spent: int) -> bool:
            index = NOW // 1000 // 86_400
            return await scripts.load(user, snapshot, UserBuild("ai", 86_400, index, spent, index, Standing.GOOD, {}))

        await settle()
        before = await scripts.snapshot(user)
        client.flushall()
        executor.now_ms = NOW + 50
        assert await load(await scripts.snapshot(user), 0)
        await settle()
        assert not await load(before, 0)
        assert await scripts.state(principal()) == [b"load"]


async def test_an_exception_counts_until_its_last_moment_and_a_rebuild_takes_it_back(
    valkey_server: ValkeyServer,
) -> None:
    with valkey_server.client() as client:
        client.flushall()
        executor = ClockedExecutor(client, NOW)
        scripts = BudgetScripts(executor, 30)  # type: ignore[arg-type]  # stands where Executor does
        user, index = principal().user_id, NOW // 1000 // 86_400
        build = UserBuild("ai", 86_400, index, 0, index, Standing.GOOD, {}, f"{NOW + 1000}|5|1")

        async def extra(at: int) -> bytes:
            executor.now_ms = at
            return (await scripts.state(principal()))[2]

        assert await scripts.load(user, await scripts.snapshot(user), build)
        assert [await extra(NOW + 999), await extra(NOW + 1000)] == [b"5", b"0"]
        build = UserBuild("ai", 86_400, index, 0, index, Standing.GOOD, {})
        assert await scripts.load(user, await scripts.snapshot(user), build)
        assert await extra(NOW + 999) == b"0"


async def test_a_decision_about_a_user_restarts_a_rebuild_and_leaves_no_state(valkey_server: ValkeyServer) -> None:
    auth = connect(valkey_server.url)
    with valkey_server.client() as client:
        client.flushall()
        executor = ClockedExecutor(client, NOW)
        scripts = BudgetScripts(executor, 30)  # type: ignore[arg-type]  # stands where Executor does
        user, index = principal().user_id, NOW // 1000 // 86_400
        key = layout.user_key(user)
        build = UserBuild("ai", 86_400, index, 0, index, Standing.GOOD, {})
        before = await scripts.snapshot(user)
        await decisions.set_user(auth, user, "large", Excepted(NOW / 1000 + 1, 5, without_rates=False))
        assert client.hkeys(key) == [layout.VERSION.encode()]
        assert 0 < client.ttl(key) <= layout.IDLE
        assert not await scripts.load(user, before, build)
        assert await scripts.load(user, await scripts.snapshot(user), build)
        client.expire(key, 100)
        await decisions.set_user(auth, user, "large", Excepted(NOW / 1000 + 1, 5, without_rates=False))
        assert (await scripts.state(principal()))[1:3] == [b"large", b"5"]
        assert 0 < client.ttl(key) <= 100
        await decisions.set_user(auth, user, "ai")
        assert (await scripts.state(principal()))[1:3] == [b"ai", b"0"]
    await auth.aclose()


@pytest.mark.parametrize("remembered_by", ["renewal", "settlement"])
async def test_a_period_before_which_the_clock_went_back_begins_with_a_rebuild(
    valkey_server: ValkeyServer, remembered_by: str
) -> None:
    """Redis forgot a request of that period, and learns of it before the clock gets there again."""
    with valkey_server.client() as client:
        client.flushall()
        executor = ClockedExecutor(client, NOW)
        scripts = BudgetScripts(executor, 30)  # type: ignore[arg-type]  # stands where Executor does
        user, index = principal().user_id, NOW // 1000 // 86_400
        build = UserBuild("ai", 86_400, index, 0, index, Standing.GOOD, {})
        assert await scripts.load(user, await scripts.snapshot(user), build)
        tomorrow = NOW + 86_400_000
        reservation = Reservation(ask(), 1, 1, 86_400, tomorrow, RateLimits(0, 0, 0, 0, 0, 0), "")
        if remembered_by == "renewal":
            assert await scripts.renew(shard(principal().identity), [reservation]) == ["ok"]
        else:
            await executor.run(*scripts.settle_call(reservation.row(Charge(5, 1, 1, 0), "success")))
        assert (await scripts.state(principal()))[0] == b"ok"
        executor.now_ms = tomorrow
        assert await scripts.state(principal()) == [b"load"]
        tier = principal().service_type
        answer = await scripts.admit(
            ask(), Expected(tier.name, tier, 0, enforced=True), bounds(ask(), tier.max_budget_nano)
        )
        assert isinstance(answer, Refusal)
        assert answer.reason == "load"
