"""Credentials that are too old, by their issue or their generation, wherever that is known."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.auth.errors import InvalidSubjectToken, UserBlocked
from services.auth.standing import storage
from services.auth.standing.changes import Changes
from services.auth.users.entry import Users
from shared.errors import DependencyUnavailable
from shared.stores.postgres import Database, Query
from shared.stores.redis import Client, connect
from shared.telemetry.metrics import Registry
from tests.support.digests import DIGESTS
from tests.support.service_types import service_type

UID = "00112233445566778899aabbccddeeff"
AI, CHAT = service_type(), service_type("chat")
_WAITING = Query.text("select count(*) as waiting from redis_changes")
_USERS = Query.text("select count(*) as users from users")


@pytest.fixture
async def without_redis(database: Database, unused_port: int) -> AsyncIterator[Users]:
    async with connect(f"redis://127.0.0.1:{unused_port}/0", timeout=0.2) as nobody:
        yield Users(database, nobody, Registry(), DIGESTS)


@pytest.fixture
async def without_postgres(redis: Client, unused_port: int) -> AsyncIterator[Users]:
    async with Database.connect(f"postgresql://x:x@127.0.0.1:{unused_port}/x") as nobody:
        yield Users(nobody, redis, Registry(), DIGESTS)


async def refuse_older(database: Database, ms: int) -> bool:
    async with database.transaction() as transaction:
        return await storage.refuse_older(transaction, UID, ms)


async def test_a_credential_of_before_an_accounts_change_is_refused_and_makes_no_user(
    database: Database, redis: Client, without_redis: Users, without_postgres: Users
) -> None:
    users, changes = Users(database, redis, Registry(), DIGESTS), Changes(database, redis, Registry())
    assert await refuse_older(database, 1_000_999)
    assert not await refuse_older(database, 1_000_999)
    for refusing in (users, without_redis):
        with pytest.raises(InvalidSubjectToken):
            await refusing.enter(UID, AI, issued_at=999.9)
    assert (await database.fetch(_USERS))[0]["users"] == 0
    for kind in (AI, CHAT):
        await users.enter(UID, kind, issued_at=1000)
    for kind in (AI, CHAT):
        with pytest.raises(InvalidSubjectToken):
            await without_postgres.enter(UID, kind, issued_at=999.9)
        await without_postgres.enter(UID, kind, issued_at=1000)
    await without_postgres.enter(UID, AI)  # a credential that does not say how old it is
    assert await refuse_older(database, 2_000_000)
    async with database.transaction() as transaction:
        await storage.record(transaction, UID, "password changed")
    await changes.apply(UID)
    with pytest.raises(InvalidSubjectToken):
        await without_postgres.enter(UID, AI, issued_at=1999)
    await redis.flushall()
    with pytest.raises(InvalidSubjectToken):
        await users.enter(UID, AI, issued_at=1999)
    await users.enter(UID, AI, issued_at=2000)


async def test_the_highest_generation_counts_and_is_asked_for_in_redis_alone(
    database: Database, redis: Client, without_redis: Users, without_postgres: Users
) -> None:
    users = Users(database, redis, Registry(), DIGESTS)
    await users.enter(UID, AI, generation=7)
    assert (await database.fetch(_WAITING))[0]["waiting"] == 0
    await without_postgres.enter(UID, AI, generation=7)
    await without_postgres.enter(UID, AI)
    with pytest.raises(DependencyUnavailable):  # what could not be recorded does not get in
        await without_postgres.enter(UID, AI, generation=8)
    for refusing in (users, without_redis, without_postgres):
        with pytest.raises(InvalidSubjectToken):
            await refusing.enter(UID, AI, generation=6)
    await redis.flushall()
    with pytest.raises(InvalidSubjectToken):
        await users.enter(UID, CHAT, generation=6)


async def test_a_generation_that_redis_missed_reaches_it(
    database: Database, redis: Client, without_redis: Users, without_postgres: Users
) -> None:
    users, changes = Users(database, redis, Registry(), DIGESTS), Changes(database, redis, Registry())
    await users.enter(UID, AI, generation=7)
    await without_redis.enter(UID, AI, generation=9)
    await without_postgres.enter(UID, AI, generation=7)  # Redis does not know yet
    with pytest.raises(InvalidSubjectToken):
        await users.enter(UID, AI, generation=8)  # higher than Redis knows, lower than PostgreSQL does
    await changes.apply_pending()
    with pytest.raises(InvalidSubjectToken):
        await without_postgres.enter(UID, AI, generation=8)
    assert (await database.fetch(_WAITING))[0]["waiting"] == 0


async def test_a_block_is_answered_before_the_age_of_a_credential(database: Database, redis: Client) -> None:
    users = Users(database, redis, Registry(), DIGESTS)
    async with database.transaction() as transaction:
        await storage.block(transaction, UID, None)
        await storage.refuse_older(transaction, UID, 1_000_000)
    for _ in range(2):
        with pytest.raises(UserBlocked):
            await users.enter(UID, AI, issued_at=1, generation=1)


async def test_last_use_is_known_to_the_hour(database: Database, redis: Client) -> None:
    users = Users(database, redis, Registry(), DIGESTS)
    for identity, ago in (("a", 59), ("b", 61)):
        await users.enter(identity * 32, AI)
        await database.execute(
            Query.text(
                "update users set last_seen_at = now() - make_interval(mins => :ago) where identity = :identity"
            ),
            identity=identity * 32,
            ago=ago,
        )
    await users.flush_seen()
    lately = Query.text("select identity from users where last_seen_at > now() - interval '1 minute'")
    assert [found["identity"] for found in await database.fetch(lately)] == ["b" * 32]
