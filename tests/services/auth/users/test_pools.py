"""Places that several service types share: a person takes one, and their number is exact."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from services.auth.errors import MaxUsersReached
from services.auth.users import operators_storage, pools, storage
from services.auth.users.entry import Users
from shared.domain.identity import user_id
from shared.domain.service_types import ServiceType, load
from shared.state.decisions import Oldest
from shared.stores.postgres import Database, Query
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from tests.support.digests import DIGESTS
from tests.support.waiting import until

ROWS = load(None, debug=True).by_name
_INSERT = Query.text(
    "insert into users (user_id, identity, service_type, budget_tier) values (:user_id, :identity, 'ai', 'ai')"
)
_WAITERS = Query.text("select from pg_locks where locktype = 'advisory' and not granted")
_DELETE = Query.text("delete from users where user_id = :user_id")


def pooled(max_users: int, *names: str) -> dict[str, ServiceType]:
    return {
        name: replace(ROWS[name], pool="signed-in", pool_members=tuple(sorted(names)), max_users=max_users)
        for name in names
    }


def uid(number: int) -> str:
    return f"{number:032x}"


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with Database.connect(postgres_url, max_size=10, timeout=10) as database:
        yield database


async def enter(database: Database, number: int, row: ServiceType) -> bool:
    return await storage.enter(database, user_id(uid(number), row.name), uid(number), row, [], Oldest())


async def leave(database: Database, number: int, row: ServiceType) -> None:
    async with database.transaction() as transaction:
        await transaction.execute(_DELETE, user_id=user_id(uid(number), row.name))
        await operators_storage.make_room(transaction, row.name)
        if row.pool is not None:
            await pools.leave(transaction, uid(number), row)


async def users(database: Database, rows: dict[str, ServiceType]) -> int:
    ((name, number, _),) = await pools.status(database, rows.values())
    assert name == "signed-in"
    return number


async def test_a_person_that_uses_both_counts_once(database: Database) -> None:
    rows = pooled(2, "ai", "memories")
    assert await users(database, rows) == 0
    assert await enter(database, 1, rows["ai"])
    assert await enter(database, 1, rows["memories"])
    assert await users(database, rows) == 1
    assert await enter(database, 2, rows["memories"])
    assert not await enter(database, 3, rows["ai"])
    assert await enter(database, 2, rows["ai"]), "it has a place, although there is none left"
    assert await enter(database, 2, rows["ai"]), "it is known"
    assert await users(database, rows) == 2


async def test_a_place_is_free_again_when_the_last_user_of_a_person_is_deleted(database: Database) -> None:
    rows = pooled(1, "ai", "memories")
    assert await enter(database, 1, rows["ai"])
    assert await enter(database, 1, rows["memories"])
    await leave(database, 1, rows["ai"])
    assert not await enter(database, 2, rows["ai"])
    await leave(database, 1, rows["memories"])
    assert await users(database, rows) == 0
    assert await enter(database, 2, rows["ai"])


async def test_of_persons_that_race_through_both_doors_exactly_as_many_enter_as_there_are_places(
    database: Database, redis_url: str
) -> None:
    rows, redis = pooled(10, "ai", "memories"), connect(redis_url)
    entry, places = Users(database, redis, Registry(), DIGESTS), asyncio.Semaphore(8)  # a connection for each

    async def one(number: int, row: ServiceType) -> bool:
        try:
            async with places:
                await entry.enter(uid(number), row)
        except MaxUsersReached:
            return False
        return True

    asked = [(number, row) for number in range(40) for row in rows.values()]
    entered = await asyncio.gather(*(one(number, row) for number, row in asked))
    persons = {number for (number, _), got_in in zip(asked, entered, strict=True) if got_in}
    assert len(persons) == await users(database, rows) == 10
    assert sum(entered) == 20, "who has a place has it at both doors"
    await redis.aclose()


async def test_a_pool_counts_who_came_before_it_was_one(database: Database) -> None:
    for number in range(3):
        assert await enter(database, number, ROWS["ai"])
    assert await enter(database, 0, ROWS["memories"])
    rows = pooled(4, "ai", "memories")
    assert await users(database, rows) == 3
    assert await enter(database, 7, rows["memories"])
    assert not await enter(database, 8, rows["memories"])
    wider = pooled(5, "ai", "memories", "s2s")
    assert await enter(database, 9, wider["s2s"])
    assert not await enter(database, 10, wider["s2s"])
    assert not await enter(database, 10, rows["ai"]), "counted again for those two alone"
    assert (await users(database, rows), await users(database, wider)) == (4, 5)


async def test_deleting_and_entering_at_once_keeps_the_number_exact(database: Database) -> None:
    rows = pooled(0, "ai", "memories")
    for number in range(10):
        assert await enter(database, number, rows["ai"])
    await asyncio.gather(
        *(leave(database, number, rows["ai"]) for number in range(10)),
        *(enter(database, number, rows["memories"]) for number in range(10)),
    )
    assert await users(database, rows) == 10


async def test_newcomers_of_a_service_type_without_a_limit_wait_for_nobody(database: Database) -> None:
    """Not even for whoever holds the row that counts those of a limited one."""
    unlimited, limited = replace(ROWS["ai"], max_users=0), replace(ROWS["ai"], max_users=12)
    assert await enter(database, 0, limited)
    async with database.transaction() as other:
        await other.execute(Query.text("select from capacity where service_type = 'ai' for update"))
        async with asyncio.timeout(5):
            assert all(await asyncio.gather(*(enter(database, number, unlimited) for number in range(1, 10))))
    assert await operators_storage.counts(database) == {"ai": 10}


async def test_newcomers_of_a_pool_without_a_limit_wait_for_nobody_and_a_later_limit_counts_them(
    database: Database,
) -> None:
    unlimited, limited = pooled(0, "ai", "memories"), pooled(4, "ai", "memories")
    assert await enter(database, 0, limited["ai"])
    assert await enter(database, 1, unlimited["ai"])
    async with database.transaction() as other:
        assert await pools.take_place(other, user_id(uid(9), "ai"), uid(9), unlimited["ai"])
        async with asyncio.timeout(5):
            assert all(await asyncio.gather(*(enter(database, 2, row) for row in unlimited.values())))
    assert await users(database, unlimited) == 3
    assert await enter(database, 3, limited["ai"])
    assert not await enter(database, 4, limited["ai"])
    assert await enter(database, 4, unlimited["ai"])
    await leave(database, 0, unlimited["ai"])
    assert not await enter(database, 5, limited["ai"])
    assert await users(database, limited) == 4


async def test_a_limit_that_comes_to_a_pool_waits_for_newcomers_that_came_without_one(database: Database) -> None:
    unlimited, limited = pooled(0, "ai", "memories"), pooled(1, "ai", "memories")
    async with database.transaction() as other:
        await other.execute(_INSERT, user_id=user_id(uid(0), "ai"), identity=uid(0))
        assert await pools.take_place(other, user_id(uid(0), "ai"), uid(0), unlimited["ai"])
        late = asyncio.create_task(enter(database, 1, limited["ai"]))

        async def waits() -> bool:
            return len(await database.fetch(_WAITERS)) == 1

        await until(waits)
    assert not await late


async def test_a_limit_that_comes_later_counts_who_entered_without_one(database: Database) -> None:
    unlimited, limited = replace(ROWS["ai"], max_users=0), replace(ROWS["ai"], max_users=12)
    assert all(await asyncio.gather(*(enter(database, number, unlimited) for number in range(10))))
    entered = await asyncio.gather(*(enter(database, number, limited) for number in range(10, 20)))
    assert sum(entered) == 2
    await leave(database, 0, limited)
    entered = await asyncio.gather(*(enter(database, number, limited) for number in range(20, 30)))
    assert sum(entered) == 1
    full = replace(ROWS["s2s"], max_users=1)
    assert await enter(database, 0, replace(full, max_users=0))
    assert not await enter(database, 1, full), "although no limited newcomer was ever counted"
