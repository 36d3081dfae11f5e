"""Users as operators change them, and the figures that must stay exact while others come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from services.auth.audit.storage import Actor
from services.auth.errors import MaxUsersReached
from services.auth.standing import storage
from services.auth.standing.changes import Changes
from services.auth.users.entry import Users
from services.auth.users.operators import UserAdmin
from services.auth.users.spending import Spending
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.errors import NotFound
from shared.state import decisions, layout
from shared.state.layout import Standing
from shared.stores.postgres import Database, Query
from shared.stores.redis import Client, connect
from shared.telemetry.metrics import Registry
from tests.support.service_types import development, service_type

UID = "00112233445566778899aabbccddeeff"
USER = f"{UID}:ai"
JANE = Actor("jane", "10.0.0.1")


@dataclass
class Parts:
    database: Database
    redis: Client
    types: ServiceTypes
    users: Users
    changes: Changes
    admin: UserAdmin

    @property
    def ai(self) -> ServiceType:
        return self.types.rows["ai"]

    async def one(self, sql: str) -> object:
        return next(iter((await self.database.fetch(Query.text(sql)))[0].values()))


@pytest.fixture
async def parts(postgres_url: str, redis_url: str) -> AsyncIterator[Parts]:
    registry, redis, types = Registry(), connect(redis_url), development()
    async with Database.connect(postgres_url, max_size=10, timeout=10) as database:
        changes = Changes(database, redis, registry)
        admin = UserAdmin(database, Spending(database, redis, types), changes, types)
        yield Parts(database, redis, types, Users(database, redis, registry), changes, admin)
    await redis.aclose()


async def test_places_stay_exact_while_users_come_and_are_deleted_at_once(parts: Parts) -> None:
    row = service_type(max_users=5)
    uids = [f"{number:032x}" for number in range(30)]

    async def come_and_go(uid: str) -> None:
        for _ in range(3):
            try:
                await parts.users.enter(uid, row)
            except MaxUsersReached:
                continue
            await parts.admin.delete(f"{uid}:ai", JANE)

    await asyncio.gather(*map(come_and_go, uids))
    assert await parts.one("select count(*) from users") == 0
    assert await parts.one("select users from capacity where service_type = 'ai'") == 0
    for uid in uids[:5]:
        await parts.users.enter(uid, row)
    with pytest.raises(MaxUsersReached):
        await parts.users.enter(uids[5], row)
    await parts.admin.delete(f"{uids[0]}:ai", JANE)
    await parts.users.enter(uids[5], row)
    assert await parts.admin.counts() == {"ai": 5, "s2s": 0, "memories": 0}


async def test_of_racing_deletes_one_happens(parts: Parts) -> None:
    await parts.users.enter(UID, parts.ai)
    results = await asyncio.gather(*(parts.admin.delete(USER, JANE) for _ in range(10)), return_exceptions=True)
    assert [type(result) for result in results].count(NotFound) == 9
    assert await parts.admin.counts() == {"ai": 0, "s2s": 0, "memories": 0}
    assert await parts.one("select count(*) from audit_log where action = 'user.delete'") == 1


async def test_who_comes_back_after_a_deletion_begins_with_the_tier_of_the_service_type(parts: Parts) -> None:
    await parts.users.enter(UID, parts.ai)
    await parts.redis.hset(layout.user_key(USER), "ep", "some run")
    await parts.admin.set_tier(USER, JANE, "memories")
    assert await parts.redis.hget(layout.user_key(USER), "tier") == b"memories"
    await parts.admin.delete(USER, JANE)
    assert await parts.redis.hget(layout.user_key(USER), "tier") == b"ai"
    await parts.users.enter(UID, parts.ai)
    assert (await parts.admin.get(USER)).row.budget_tier == "ai"


async def test_a_block_outlives_the_deletion_of_the_user(parts: Parts) -> None:
    await parts.users.enter(UID, parts.ai)
    await parts.admin.block(USER, JANE, "spam")
    await parts.admin.delete(USER, JANE)
    assert await storage.standing(parts.database, UID) is Standing.BLOCKED
    assert (await decisions.known(parts.redis, UID, "ai")).standing is Standing.BLOCKED


async def test_what_was_read_before_a_decision_is_not_remembered_after_it(parts: Parts) -> None:
    await parts.users.enter(UID, parts.ai)
    before = await decisions.known(parts.redis, UID, "ai")
    await parts.admin.delete(USER, JANE)
    await decisions.remember(parts.redis, UID, "ai", Standing.GOOD, before.version)
    assert not (await decisions.known(parts.redis, UID, "ai")).user


async def test_blocking_twice_keeps_the_first_time_and_takes_the_last_reason(parts: Parts) -> None:
    await parts.users.enter(UID, parts.ai)
    await parts.admin.block(USER, JANE, "first")
    first = (await parts.admin.get(USER)).row
    await parts.admin.block(USER, JANE, None)
    second = (await parts.admin.get(USER)).row
    assert (second.blocked_at, second.blocked_reason) == (first.blocked_at, None)


async def test_a_tier_that_is_no_more_is_the_users_own_service_type(parts: Parts) -> None:
    await parts.users.enter(UID, parts.ai)
    await parts.database.execute(Query.text("update users set budget_tier = 'gone'"))
    assert (await parts.admin.get(USER)).spent.max_budget_nano == parts.ai.max_budget_nano


async def test_a_change_and_its_audit_entry_are_one_transaction(parts: Parts) -> None:
    await parts.users.enter(UID, parts.ai)
    await parts.database.execute(Query.text("alter table audit_log add constraint full_up check (false) not valid"))
    with pytest.raises(Exception, match="full_up"):
        await parts.admin.block(USER, JANE)
    assert not (await parts.admin.get(USER)).row.blocked_at
    assert await parts.one("select count(*) from redis_changes") == 0


async def test_pages_and_searches_read_no_more_than_they_show(parts: Parts) -> None:
    """The plans, not the clock: every page is a range of an index."""
    await parts.database.execute(
        Query.text(
            "insert into users (user_id, identity, service_type, budget_tier, created_at) "
            "select md5(n::text) || '\\:ai', md5(n::text), 'ai', 'ai', now() - interval '1 min' * n "
            "from generate_series(1, 20000) n"
        )
    )
    await parts.database.execute(Query.text("analyze users"))
    page, total = await parts.admin.page(limit=50)
    for _ in range(3):
        assert page.next_cursor
        page, total = await parts.admin.page(limit=50, cursor=page.next_cursor)
    assert total == pytest.approx(20_000, rel=0.1)
    for where in (
        "user_id > 'ab0' and user_id >= 'ab' and user_id < 'ab\U0010ffff' order by user_id",
        "(created_at, user_id) > (now(), '') order by created_at, user_id",
    ):
        plan = await parts.database.fetch(Query.text(f"explain select * from users where {where} limit 50"))
        text = "\n".join(str(row["QUERY PLAN"]) for row in plan)
        assert "Index" in text
        assert "Seq Scan" not in text
        assert "Sort" not in text
