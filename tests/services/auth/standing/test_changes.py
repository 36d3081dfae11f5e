"""Decisions on their way from PostgreSQL to Redis, and how far Redis is believed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from services.auth.errors import AccessDenied
from services.auth.standing import storage
from services.auth.standing.changes import Changes, NotInRedisYet
from services.auth.users.entry import Users
from shared.domain.service_types import ServiceType
from shared.errors import DependencyUnavailable
from shared.state import decisions, layout
from shared.state.layout import Standing
from shared.stores import migrate
from shared.stores.postgres import Database, DatabaseUnavailable, Query
from shared.stores.redis import Client, connect
from shared.telemetry.metrics import Registry
from tests.support.digests import DIGESTS
from tests.support.service_types import service_type
from tests.support.waiting import until

UID, OTHER = "00112233445566778899aabbccddeeff", "f" * 32
_BLOCK = Query.text("insert into identities (identity, blocked_at) values (:identity, now())")
_REVOKE = Query.text(
    "insert into revocations (jti, user_id, expires_at) "
    "select 'j' || n, :user_id, now() + make_interval(secs => :left) from generate_series(1, :count) n"
)
_COUNT = Query.text(
    "select (select count(*) from revocations) as revoked, (select count(*) from redis_changes) as open"
)


@dataclass
class Parts:
    database: Database
    redis: Client
    users: Users
    changes: Changes
    ai: ServiceType

    async def decide(self, identity: str) -> None:
        """A block that Redis does not know yet."""
        async with self.database.transaction() as transaction:
            await transaction.execute(_BLOCK, identity=identity)
            await storage.record(transaction, identity, "blocked")

    async def counts(self) -> tuple[int, int]:
        (row,) = await self.database.fetch(_COUNT)
        return row["revoked"], row["open"]


@pytest.fixture
async def parts(postgres_url: str, redis_url: str) -> AsyncIterator[Parts]:
    async with Database.connect(postgres_url, timeout=10) as database, connect(redis_url) as redis:
        registry = Registry()
        users, changes = Users(database, redis, registry, DIGESTS), Changes(database, redis, registry)
        yield Parts(database, redis, users, changes, service_type())


async def test_what_another_server_remembers_is_not_believed(parts: Parts) -> None:
    """After a failover that lost a block, Redis says that all is well."""
    await parts.users.enter(UID, parts.ai)
    await parts.database.execute(_BLOCK, identity=UID)
    await parts.users.enter(UID, parts.ai)  # this server has not been told
    await parts.redis.hset(layout.identity_key(UID), "u:ai", "a" * 40)
    with pytest.raises(AccessDenied):
        await parts.users.enter(UID, parts.ai)
    assert (await decisions.known(parts.redis, UID, "ai")).standing is Standing.BLOCKED


async def test_one_identity_that_cannot_be_applied_holds_up_nobody_else(parts: Parts) -> None:
    await parts.decide(UID)
    await parts.decide(OTHER)
    await parts.redis.set(layout.identity_key(UID), "not a hash")
    with pytest.raises(DependencyUnavailable):
        await parts.changes.apply_pending()
    assert await parts.redis.hget(layout.identity_key(OTHER), "blk") == b"blocked"
    assert (await parts.counts())[1] == 1
    await parts.redis.delete(layout.identity_key(UID))
    await parts.changes.apply_pending()
    assert await parts.redis.hget(layout.identity_key(UID), "blk") == b"blocked"
    assert (await parts.counts())[1] == 0


class Slow:
    """A way to Redis on which the first script is held up, and arrives whether or not anybody waits for it still."""

    def __init__(self, redis_url: str) -> None:
        self._target = urlsplit(redis_url)
        self._let_go, self._arrived = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as listener:
            yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"

    async def arrive(self) -> None:
        self._let_go.set()
        await self._arrived.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_connection(self._target.hostname, self._target.port)
        while asked := await reader.read(65536):
            held = b"EVAL" in asked
            if held:
                await self._let_go.wait()
            server.write(asked)
            writer.write(await answers.read(65536))
            if held:
                self._arrived.set()
        server.close()
        writer.close()


async def test_a_decision_that_redis_hears_of_late_does_not_undo_the_next_one(parts: Parts, redis_url: str) -> None:
    slow = Slow(redis_url)
    async with parts.database.transaction() as transaction:
        await storage.record(transaction, UID, "unblocked")
    async with slow.open() as url, connect(url, timeout=0.2) as redis:
        with pytest.raises(NotInRedisYet):
            await Changes(parts.database, redis, Registry()).apply(UID)
        await parts.decide(UID)
        await parts.changes.apply(UID)
        await slow.arrive()
    assert await parts.redis.hget(layout.identity_key(UID), "blk") == b"blocked"
    assert (await parts.counts())[1] == 0


async def test_a_decision_that_another_came_before_is_not_taken_for_made(parts: Parts) -> None:
    version = await decisions.standing_version(parts.redis, UID)
    assert await decisions.set_standing(parts.redis, UID, Standing.BLOCKED, version=version)
    assert not await decisions.set_standing(parts.redis, UID, Standing.GOOD, version=version)
    assert await parts.redis.hget(layout.identity_key(UID), "blk") == b"blocked"
    assert await decisions.set_standing(parts.redis, UID, Standing.GOOD)


async def test_an_identity_with_thousands_of_revoked_tokens_can_be_blocked(parts: Parts) -> None:
    await parts.database.execute(_REVOKE, user_id=f"{UID}:ai", left=300, count=5000)
    await parts.decide(UID)
    await parts.changes.apply(UID)
    assert await parts.redis.exists(layout.token_key(UID, "j1"), layout.token_key(UID, "j5000")) == 2


async def test_revocations_of_expired_tokens_are_cleared_away_and_no_others(parts: Parts) -> None:
    await parts.database.execute(_REVOKE, user_id=f"{UID}:ai", left=-1, count=3)
    await storage.clear_expired(parts.database)
    assert await parts.counts() == (0, 0)
    await parts.database.execute(_REVOKE, user_id=f"{UID}:ai", left=60, count=3)
    await storage.clear_expired(parts.database)
    assert await parts.counts() == (3, 0)


async def test_a_database_without_tables_does_not_end_the_background_work(
    empty_postgres_url: str, redis_url: str
) -> None:
    """Auth may start before the migration has run, and apply afterwards what Redis missed."""
    registry = Registry()
    async with Database.connect(empty_postgres_url) as database, connect(redis_url) as redis:
        changes = Changes(database, redis, registry, every=0.01)
        async with changes.running():
            await until(lambda: database.state.reason)
            await asyncio.to_thread(migrate.upgrade, empty_postgres_url)
            await Parts(database, redis, Users(database, redis, registry, DIGESTS), changes, service_type()).decide(UID)
            await until(lambda: storage.count_pending(database), equals=0)


async def test_users_seen_before_the_migration_are_not_forgotten(empty_postgres_url: str, redis_url: str) -> None:
    async with Database.connect(empty_postgres_url) as database, connect(redis_url) as redis:
        users = Users(database, redis, Registry(), DIGESTS)
        users._seen.add(f"{UID}:ai")
        with pytest.raises(DatabaseUnavailable):
            await users.flush_seen()
        assert users._seen == {f"{UID}:ai"}
