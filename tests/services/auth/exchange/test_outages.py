"""Exchanges while Redis or PostgreSQL is down: success is never answered unless the change was stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from services.auth.tokens.key_ring import KEY_RING
from services.cli.client import ASSERTION
from services.local.postgres import PostgresServer
from services.local.valkey import ValkeyServer
from shared.stores import migrate
from shared.stores.postgres import Database, Query
from shared.stores.redis import connect
from tests.services.auth.conftest import Auth, StartAuth, many
from tests.support.waiting import until

_BLOCK = Query.text("insert into identities (identity, blocked_at) values (:identity, now())")
_OTHER = "f" * 32


@pytest.fixture
def own_database(own_postgres: PostgresServer) -> str:
    url = own_postgres.create_database("mlpa")
    migrate.upgrade(url)
    return url


async def test_without_redis_fxa_goes_on_with_blocks_of_postgresql_and_limits_of_the_process(
    start_auth: StartAuth, own_valkey: ValkeyServer, postgres_url: str
) -> None:
    auth = await start_auth(redis_url=own_valkey.url, exchange_limit_per_identity=2)
    async with Database.connect(postgres_url) as database:
        await database.execute(_BLOCK, identity=_OTHER)
    own_valkey.kill()
    answers = [await auth.exchange(auth.fxa_token()) for _ in range(3)]
    assert [status for status, _ in answers] == [200, 200, 429]
    assert answers[-1][1]["error"] == "slow_down"
    status, body = await auth.exchange(auth.fxa_token(uid=_OTHER))
    assert (status, body["error"]) == (403, "access_denied")


async def test_without_redis_no_device_gets_in_and_nothing_is_used_up(
    start_auth: StartAuth, own_valkey: ValkeyServer
) -> None:
    auth = await start_auth(redis_url=own_valkey.url)
    device, stranger = auth.device(), auth.device()
    await auth.enrol(device)
    token = await auth.assertion(device)
    enrolment = auth.attest_body(stranger, await auth.challenge(stranger))
    own_valkey.kill()
    status, body, headers = await auth.ask("POST", "/verify/attest", json=enrolment)
    assert (status, body["error"], headers["Retry-After"]) == (503, "temporarily_unavailable", "1")
    status, body = await auth.exchange(token, ASSERTION)
    assert (status, body["error"]) == (503, "temporarily_unavailable")
    own_valkey.start()
    assert (await auth.exchange(token, ASSERTION))[0] == 200
    assert (await auth.ask("POST", "/verify/attest", json=enrolment))[0] == 201


async def test_without_postgresql_known_accounts_go_on_and_nothing_else(
    start_auth: StartAuth, redis_url: str, own_postgres: PostgresServer, own_database: str
) -> None:
    auth = await start_auth(database_url=own_database)
    device, stranger = auth.device(), auth.device()
    await auth.enrol(device)
    assert (await auth.exchange(auth.fxa_token()))[0] == 200
    token = await auth.assertion(device)
    enrolment = auth.attest_body(stranger, await auth.challenge(stranger))
    own_postgres.kill()
    assert (await auth.exchange(auth.fxa_token()))[0] == 200
    for refused in (auth.exchange(auth.fxa_token(uid=_OTHER)), auth.exchange(token, ASSERTION)):
        status, body = await refused
        assert (status, body["error"]) == (503, "temporarily_unavailable")
    assert (await auth.ask("POST", "/verify/attest", json=enrolment))[0] == 503
    own_postgres.start()
    assert (await auth.exchange(token, ASSERTION))[0] == 200, "a 503 uses no challenge up"
    assert (await auth.ask("POST", "/verify/attest", json=enrolment))[0] == 201


@dataclass
class Held:
    """PostgreSQL with a lock in the way of every write to ``devices``, but not of reads."""

    auth: Auth
    server: PostgresServer
    url: str

    async def killed_at_the_store(self, work: Awaitable[tuple[Any, ...]]) -> tuple[Any, ...]:
        """The answer to a request during whose write the server dies."""
        lock = psycopg2.connect(self.url)
        lock.cursor().execute("lock table devices in share mode")
        task = asyncio.ensure_future(work)
        watch = psycopg2.connect(self.url)
        watch.autocommit = True
        await until(lambda: _waits_for_a_lock(watch) or task.done())
        assert not task.done(), task.result()
        self.server.kill()
        return await task


@pytest.fixture
async def held(start_auth: StartAuth, redis_url: str, own_postgres: PostgresServer, own_database: str) -> Held:
    return Held(await start_auth(database_url=own_database), own_postgres, own_database)


def _waits_for_a_lock(connection: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("select 1 from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'mlpa'")
        return cursor.fetchone() is not None


async def test_an_enrolment_whose_store_fails_is_a_503_and_can_be_sent_again(held: Held) -> None:
    auth = held.auth
    device = auth.device()
    body = auth.attest_body(device, await auth.challenge(device))
    status, answer, _ = await held.killed_at_the_store(auth.ask("POST", "/verify/attest", json=body))
    assert (status, answer["error"]) == (503, "temporarily_unavailable")
    held.server.start()
    assert (await auth.exchange_device(device))[0] == 400, "it was not stored"
    assert (await auth.ask("POST", "/verify/attest", json=body))[0] == 201
    assert (await auth.ask("POST", "/verify/attest", json=body))[0] == 401, "success has used the challenge up"


async def test_an_assertion_whose_counter_is_not_stored_is_a_503_and_can_be_sent_again(held: Held) -> None:
    auth = held.auth
    device = await auth.enrolled()
    token = await auth.assertion(device)
    status, answer = await held.killed_at_the_store(auth.exchange(token, ASSERTION))
    assert (status, answer["error"]) == (503, "temporarily_unavailable")
    held.server.start()
    assert (await auth.exchange(token, ASSERTION))[0] == 200
    assert (await auth.exchange(token, ASSERTION))[0] == 400


async def _answering(server: ValkeyServer) -> None:
    """Wait until a server that was paused has handled all that was sent to it."""
    async with connect(server.url) as redis:
        await redis.ping()


async def test_what_a_stalled_redis_made_unavailable_is_good_when_it_is_sent_again_and_good_once(
    start_auth: StartAuth, own_valkey: ValkeyServer
) -> None:
    auth = await start_auth(redis_url=own_valkey.url)
    newcomers, known = [auth.device() for _ in range(6)], [auth.device() for _ in range(6)]
    for device in known:
        assert (await auth.enrol(device))[0] == 201
    bodies = [auth.attest_body(device, await auth.challenge(device)) for device in newcomers]
    tokens = [await auth.assertion(device) for device in known]

    async def attest(index: int) -> int:
        return int((await auth.ask("POST", "/verify/attest", json=bodies[index]))[0])

    async def exchange(index: int) -> int:
        return int((await auth.exchange(tokens[index], ASSERTION))[0])

    own_valkey.pause()
    try:
        stalled = await asyncio.gather(many(6, attest), many(6, exchange))
    finally:
        own_valkey.resume()
    assert stalled == [[503] * 6] * 2
    await _answering(own_valkey)
    assert (await many(6, attest), await many(6, exchange)) == ([201] * 6, [200] * 6)
    assert (await many(6, attest), await many(6, exchange)) == ([401] * 6, [400] * 6)


async def test_of_equal_attempts_after_a_stall_exactly_one_succeeds(
    start_auth: StartAuth, own_valkey: ValkeyServer
) -> None:
    auth = await start_auth(redis_url=own_valkey.url)
    device, stranger = auth.device(), auth.device()
    await auth.enrol(device)
    token = await auth.assertion(device)
    body = auth.attest_body(stranger, await auth.challenge(stranger))

    async def attest(_: int) -> int:
        return int((await auth.ask("POST", "/verify/attest", json=body))[0])

    async def exchange(_: int) -> int:
        return int((await auth.exchange(token, ASSERTION))[0])

    own_valkey.pause()
    try:
        assert await asyncio.gather(many(6, attest), many(6, exchange)) == [[503] * 6] * 2
    finally:
        own_valkey.resume()
    await _answering(own_valkey)
    assert sorted(await many(6, attest)) == [201] + [401] * 5
    assert sorted(await many(6, exchange)) == [200] + [400] * 5


async def test_an_assertion_that_verified_before_a_503_may_be_sent_again(
    start_auth: StartAuth, postgres_url: str, tmp_path: Path
) -> None:
    """The user can't be entered, and then there is nothing to sign with."""
    auth = await start_auth()
    device = await auth.enrolled()
    token = await auth.assertion(device)
    with closing(psycopg2.connect(postgres_url)) as other, other.cursor() as cursor:
        cursor.execute("lock table users in access exclusive mode")
        assert (await auth.exchange(token, ASSERTION))[0] == 503
    (key,) = (tmp_path / "keys").glob("*.pem")
    key.rename(tmp_path / "away")
    auth.apps.main[KEY_RING].refresh()
    assert (await auth.exchange(token, ASSERTION))[0] == 503
    (tmp_path / "away").rename(key)
    auth.apps.main[KEY_RING].refresh()
    assert (await auth.exchange(token, ASSERTION))[0] == 200
    assert (await auth.exchange(token, ASSERTION))[0] == 400
