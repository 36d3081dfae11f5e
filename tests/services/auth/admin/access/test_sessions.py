"""Sessions against somebody who can read and write all of Redis."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from services.auth.admin.access.admin_keys import AdminKey, AdminKeys
from services.auth.admin.access.sessions import ABSOLUTE_SECONDS, Flash, Session, Sessions
from services.local.valkey import ValkeyServer
from shared.domain.tokens import CLOCK_SKEW
from shared.errors import DependencyUnavailable
from shared.stores.redis import Client, connect
from tests.support.clock import Clock
from tests.support.waiting import until

ALICE = AdminKey("alice", "admin", hashlib.sha256(b"alice").digest())
BOB = AdminKey("bob", "viewer", hashlib.sha256(b"bob").digest())
SECRETS = [b"new", b"old"]


@pytest.fixture
def sessions(redis: Client, clock: Clock) -> Sessions:
    return Sessions(redis, AdminKeys([ALICE, BOB]), SECRETS, clock=clock)


def place(session_id: str) -> str:
    return f"mlpa:session:{hashlib.sha256(session_id.encode()).hexdigest()}"


async def found(sessions: Sessions, session_id: str) -> Session | None:
    return await sessions.find(session_id, take_flash=True)


async def test_a_session_is_found_as_it_began_and_says_something_once(sessions: Sessions) -> None:
    session = await sessions.begin(ALICE)
    assert await found(sessions, session.id) == session
    await sessions.say(session, Flash("Done."))
    told = await found(sessions, session.id)
    assert told is not None
    assert (told.key, told.flash) == (ALICE, Flash("Done."))
    assert await found(sessions, session.id) == session
    await sessions.end(session.id)
    assert await found(sessions, session.id) is None


async def test_a_copy_under_an_id_of_ones_own_is_no_session(sessions: Sessions, redis: Client) -> None:
    session = await sessions.begin(ALICE)
    await redis.hset(place("mine"), mapping=await redis.hgetall(place(session.id)))
    assert await found(sessions, "mine") is None
    assert not await redis.exists(place("mine"))
    assert await found(sessions, session.id) == session


async def test_nothing_of_a_session_can_be_changed(sessions: Sessions, redis: Client) -> None:
    session = await sessions.begin(BOB)
    fields = await redis.hgetall(place(session.id))
    signed = fields[b"signed"]
    name, born, csrf = msgspec.msgpack.decode(signed[32:])
    for other in (["alice", born, csrf], [name, born + 1, csrf], [name, born, "mine"], [name, born], "junk"):
        await redis.hset(place(session.id), mapping={**fields, "signed": signed[:32] + msgspec.msgpack.encode(other)})
        assert await found(sessions, session.id) is None, other
    for raw in (b"", signed[:32], signed[1:], signed + b"\0"):
        await redis.hset(place(session.id), mapping={**fields, "signed": raw})
        assert await found(sessions, session.id) is None, raw
    await redis.hset(place(session.id), mapping={**fields, "flash": "junk"})
    assert await found(sessions, session.id) is None


async def test_redis_has_no_session_id_and_nothing_to_guess_a_key_by(sessions: Sessions, redis: Client) -> None:
    session = await sessions.begin(ALICE)
    (name,) = await redis.keys("*")
    stored = b"".join([name, *(await redis.hgetall(name)).values()])
    for secret in (session.id.encode(), ALICE.digest, ALICE.digest.hex().encode()):
        assert secret not in stored


async def test_a_session_is_over_after_twelve_hours_and_none_before_it_began(sessions: Sessions, clock: Clock) -> None:
    session = await sessions.begin(ALICE)
    clock.now += ABSOLUTE_SECONDS - 1
    assert await found(sessions, session.id) == session
    clock.now += 1
    assert await found(sessions, session.id) is None
    session = await sessions.begin(ALICE)
    clock.now -= CLOCK_SKEW
    assert await found(sessions, session.id) == session, "another process, whose clock is behind"
    clock.now -= 1
    assert await found(sessions, session.id) is None


async def test_a_session_ends_with_its_key_also_when_another_gets_its_name(sessions: Sessions, redis: Client) -> None:
    for keys in ([BOB], [AdminKey("alice", "admin", BOB.digest)]):
        session = await sessions.begin(ALICE)
        assert await found(Sessions(redis, AdminKeys(keys), SECRETS), session.id) is None
        assert await found(sessions, session.id) is None, "nor does it come back with the key"


async def test_a_session_outlives_a_new_secret_but_not_its_own_one(redis: Client, clock: Clock) -> None:
    keys = AdminKeys([ALICE])
    session = await Sessions(redis, keys, [b"old"], clock=clock).begin(ALICE)
    assert await found(Sessions(redis, keys, [b"new", b"old"], clock=clock), session.id) == session
    assert await found(Sessions(redis, keys, [b"new"], clock=clock), session.id) is None


async def test_nothing_is_left_of_a_session_that_ended_before_something_was_said(
    sessions: Sessions, redis: Client
) -> None:
    session = await sessions.begin(ALICE)
    await sessions.end(session.id)
    await sessions.say(session, Flash("Done."))
    assert await redis.keys("*") == []
    session = await sessions.begin(ALICE)
    await redis.expire(place(session.id), 5)
    await sessions.say(session, Flash("Done."))
    assert await redis.ttl(place(session.id)) > 5


async def test_sessions_leave_a_demoted_primary_for_where_its_name_leads_now(own_valkey: ValkeyServer) -> None:
    async with connect(own_valkey.url) as redis:
        sessions = Sessions(redis, AdminKeys([ALICE]), SECRETS)
        session = await sessions.begin(ALICE)
        assert await found(sessions, session.id) == session
        before = {each["id"] for each in await redis.client_list()}
        await redis.execute_command("REPLICAOF", "127.0.0.1", "1")

        async def another_connection() -> bool:
            with pytest.raises(DependencyUnavailable):
                await found(sessions, session.id)
            return not before & {each["id"] for each in await redis.client_list()}

        await until(another_connection)
