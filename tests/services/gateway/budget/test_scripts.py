"""Single stories of the scripts that chance would hardly tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from services.gateway.budget.charging import Charge, bounds
from services.gateway.budget.models import RateLimits, Reservation
from services.gateway.budget.refusals import Refusal
from services.gateway.budget.scripts import BudgetScripts, Expected, Expired, Snapshot, Sweep, UserBuild
from services.local.valkey import ValkeyServer
from shared.domain.identity import shard
from shared.domain.outcome import Outcome
from shared.state import decisions, layout
from shared.state.layout import Standing
from shared.state.packed import Excepted, LedgerRow
from shared.stores.redis import connect
from tests.services.gateway.budget.clocked import ClockedExecutor
from tests.services.gateway.budget.support import ask, principal

NOW = 1_700_000_000_000
Clocked = tuple[redis.Redis, ClockedExecutor, BudgetScripts]


@pytest.fixture
def clocked(valkey_server: ValkeyServer) -> Iterator[Clocked]:
    """The client of an empty server, and its scripts on a clock that stands at NOW."""
    with valkey_server.client() as client:
        client.flushall()
        executor = ClockedExecutor(client, NOW)
        yield client, executor, BudgetScripts(executor, 30)  # type: ignore[arg-type]  # stands where Executor does


async def test_a_rebuild_begun_before_redis_was_emptied_does_not_count_afterwards(clocked: Clocked) -> None:
    """The versions of two lives of one key are never the same, however much happened in each."""
    client, executor, scripts = clocked
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


async def test_an_exception_counts_until_its_last_moment_and_a_rebuild_takes_it_back(clocked: Clocked) -> None:
    _, executor, scripts = clocked
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


async def test_a_decision_about_a_user_restarts_a_rebuild_and_leaves_no_state(
    clocked: Clocked, valkey_server: ValkeyServer
) -> None:
    auth = connect(valkey_server.url)
    client, _, scripts = clocked
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


async def test_what_was_read_of_an_identity_before_its_erasure_is_not_written_after_it(
    clocked: Clocked, valkey_server: ValkeyServer
) -> None:
    auth = connect(valkey_server.url)
    client, _, scripts = clocked
    user, index = principal().user_id, NOW // 1000 // 86_400
    identity = user.removesuffix(":ai")
    build = UserBuild("ai", 86_400, index, 0, index, Standing.GOOD, {})
    for _ in range(2):
        before, known = await scripts.snapshot(user), await decisions.known(auth, identity, "ai")
        assert await decisions.forget(auth, identity, ["ai"]) == 0
        assert not await scripts.load(user, before, build)
        assert not await decisions.remember(auth, identity, "ai", Standing.GOOD, known.version)
        assert client.keys("mlpa:*") == [layout.of_user(user).forgotten.encode()]
    assert 0 < client.ttl(layout.of_user(user).forgotten) <= layout.REBUILT
    known = await decisions.known(auth, identity, "ai")
    assert await decisions.remember(auth, identity, "ai", Standing.GOOD, known.version), "it may return at once"
    assert await scripts.load(user, await scripts.snapshot(user), build)
    await auth.aclose()


@pytest.mark.parametrize("remembered_by", ["renewal", "settlement"])
async def test_a_period_before_which_the_clock_went_back_begins_with_a_rebuild(
    clocked: Clocked, remembered_by: str
) -> None:
    """Redis forgot a request of that period, and learns of it before the clock gets there again."""
    _, executor, scripts = clocked
    user, index = principal().user_id, NOW // 1000 // 86_400
    build = UserBuild("ai", 86_400, index, 0, index, Standing.GOOD, {})
    assert await scripts.load(user, await scripts.snapshot(user), build)
    tomorrow = NOW + 86_400_000
    reservation = Reservation(ask(), 1, 1, 86_400, tomorrow, RateLimits(0, 0, 0, 0, 0, 0), "")
    if remembered_by == "renewal":
        earlier = Reservation(ask(), 1, 1, 86_400, NOW - 86_400_000, RateLimits(0, 0, 0, 0, 0, 0), "")
        assert await scripts.renew(shard(principal().identity), [reservation, earlier]) == ["ok"] * 2
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


async def test_a_sweep_finds_what_is_old_enough_page_by_page_and_forgets_old_sums(clocked: Clocked) -> None:
    day = 86_400_000
    client, _, scripts = clocked
    keys = layout.SHARD_KEYS[0]

    async def sweep(cursor: str = "0") -> Sweep:
        client.delete(keys.claim)
        found = await scripts.sweep(0, "me", 60, 5, cursor)
        assert found is not None
        return found

    def settle(age: int) -> str:
        made = Reservation(ask(), 1, 1, 86_400, NOW - age, RateLimits(0, 0, 0, 0, 0, 0), "")
        line = f"0|1|{NOW - age}|{principal().user_id}|{made.row(Charge(1, 1, 1, 1), 'success').end}"
        client.hset(keys.outbox, made.id, line)
        return made.id

    empty = await sweep()
    assert await scripts.sweep(0, "other", 60, 5, "0") is None, "the shard is claimed"
    assert (empty.cursor, empty.waiting, empty.oldest_ms) == ("0", 0, 0)
    old, _, older = settle(5_001), settle(5_000), settle(7_000)
    found = await sweep()
    assert (found.waiting, found.oldest_ms, {row.id for row in found.rows}) == (3, 7_000, {old, older})
    for _ in range(2_000):
        settle(6_000)
    first = await sweep()
    assert len(first.rows) < 2_000
    assert first.cursor != "0"
    assert len((await sweep(first.cursor)).rows) < 2_000

    ended = NOW // day - 2  # the last period of a day that ended more than a day ago
    kept = [f"{kind}ai:86400|{ended + 1}" for kind in (layout.SUM_SPENT, layout.SUM_RESERVED)]
    kept += [f"{layout.BUILT}ai:86400", layout.EPOCH, f"{layout.SUM_SPENT}ai:100|{(NOW - day) // 100_000 - 1}"]
    gone = [f"{layout.SUM_SPENT}ai:86400|{ended}", f"{layout.SUM_RESERVED}ai:100|{(NOW - day) // 100_000 - 2}"]
    client.hset(keys.totals, mapping=dict.fromkeys(kept + gone, 1))
    await sweep()
    assert {name.decode() for name in client.hkeys(keys.totals)} == set(kept)


async def test_an_acknowledgement_forgets_a_row_that_is_written_and_no_other(clocked: Clocked) -> None:
    """Any change of what is not written yet restarts a rebuild; an acknowledgement that comes again changes nothing."""
    _, executor, scripts = clocked
    user = principal().user_id
    made = Reservation(ask(), 1, 1, 86_400, NOW, RateLimits(0, 0, 0, 0, 0, 0), "")
    row = made.row(Charge(5, 1, 1, 0), "success")
    await executor.run(*scripts.settle_call(row))
    versions = [(await scripts.snapshot(user)).user_version]
    await scripts.acknowledge(shard(principal().identity), [replace(row, cost_nano=6)])
    found = await scripts.snapshot(user)
    versions.append(found.user_version)
    assert found.rows == {row.id: (5, NOW)}
    for _ in range(2):
        await scripts.acknowledge(shard(principal().identity), [row])
        found = await scripts.snapshot(user)
        versions.append(found.user_version)
        assert found.rows == {}
    assert versions == ["1", "1", "2", "2"]


async def test_a_state_that_is_built_lives_for_two_days_and_counts_tokens_for_a_minute(clocked: Clocked) -> None:
    client, executor, scripts = clocked
    user, index = principal().user_id, NOW // 1000 // 86_400
    build = UserBuild("ai", 86_400, index, 0, index, Standing.GOOD, {})
    made = Reservation(ask(), 1, 1, 86_400, NOW, RateLimits(0, 0, 0, 0, 0, 0), "")
    await executor.run(*scripts.settle_call(made.row(Charge(5, 1, 1, 8), "success")))
    snapshot = await scripts.snapshot(user)
    for key in (layout.user_key(user), layout.identity_key(principal().identity)):
        client.persist(key)
    executor.now_ms = NOW + 86_400_000
    assert not await scripts.load(user, snapshot, build), "another period has begun"
    executor.now_ms = NOW
    assert await scripts.load(user, snapshot, build)
    for key in (layout.user_key(user), layout.identity_key(principal().identity)):
        assert layout.IDLE - 60 <= client.ttl(key) <= layout.IDLE

    async def tokens(at: int) -> list[bytes]:
        executor.now_ms = at
        return (await scripts.state(principal()))[-2:]

    assert await tokens(NOW + 59_999) == [b"8", b"1"]
    assert await tokens(NOW + 60_000) == [b"0", b"0"]
    executor.now_ms = (index + 1) * 86_400_000 - 1
    assert (await scripts.state(principal()))[4] == str(index).encode()


async def test_a_late_settlement_lowers_a_charge_once_and_never_raises_it(clocked: Clocked) -> None:
    client, executor, scripts = clocked
    who, index = principal(), NOW // 1000 // 86_400
    number, keys = shard(who.identity), layout.of_user(who.user_id)
    build = UserBuild("ai", 86_400, index, 0, index, Standing.GOOD, {})
    assert await scripts.load(who.user_id, await scripts.snapshot(who.user_id), build)

    def held(amount: int) -> Reservation:
        return Reservation(ask(), 1, amount, 86_400, NOW, RateLimits(0, 0, 0, 0, 0, 0), "ai:86400")

    async def settle(one: Reservation, cost: int, tokens: int = 0) -> Any:
        return await executor.run(*scripts.settle_call(one.row(Charge(cost, 1, 1, tokens), "success")))

    async def amounts() -> tuple[list[int], list[int]]:
        """Spent and reserved, of the user and of all."""
        fields = [f"{kind}ai:86400|{index}" for kind in (layout.SUM_SPENT, layout.SUM_RESERVED)]
        words = await scripts.state(who)
        return [int(word) for word in words[5:7]], [int(value or 0) for value in client.hmget(keys.totals, fields)]

    in_time, equal, lower, least = held(10), held(10), held(10), held(1)
    assert await scripts.renew(number, [in_time, equal, lower, least]) == ["ok"] * 4
    assert await amounts() == ([0, 31], [0, 31])
    assert client.hmget(keys.user(who.user_id), layout.OPEN, layout.ESTIMATED) == [b"4", b"100"]
    assert await settle(in_time, 4) == f"0 {NOW}".encode()
    assert await amounts() == ([4, 21], [4, 21])
    assert not client.exists(keys.tokens_window(who.user_id))
    executor.now_ms = late = NOW + 30_000
    client.persist(keys.user(who.user_id))
    await scripts.reap(number, [Expired(one.id, who.user_id) for one in (equal, lower, least)])
    assert await amounts() == ([25, 0], [25, 0])
    assert await scripts.renew(number, [in_time, equal]) == ["settled", "reaped"]
    assert layout.IDLE - 60 <= client.ttl(keys.user(who.user_id)) <= layout.IDLE
    client.persist(keys.user(who.user_id))
    assert [await settle(equal, 10), await settle(lower, 3)] == [b"-", f"1 {late} {NOW}".encode()]
    assert layout.IDLE - 60 <= client.ttl(keys.user(who.user_id)) <= layout.IDLE
    withdrawn = replace(least.row(Charge(0, 1, 1, 1), Outcome.ABORT), admitted_ms=NOW + 7)  # by a clock of its own
    assert await executor.run(*scripts.settle_call(withdrawn)) == f"1 {late} {NOW}".encode()
    assert LedgerRow.parse(least.id, (client.hget(keys.outbox, least.id) or b"").decode()).admitted_ms == NOW
    assert await settle(lower, 2) == f"1 {late} {NOW}".encode()
    assert await amounts() == ([17, 0], [17, 0])
    assert client.zrange(keys.tokens_window(who.user_id), 0, -1) == [f"{least.id} 1".encode()]
    assert layout.WINDOW - 60_000 < client.pttl(keys.tokens_window(who.user_id)) <= layout.WINDOW
