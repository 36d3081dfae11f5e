"""A challenge is used once: also when connections break, when the work fails, and by clocks that differ."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from services.auth.challenge.services import Challenges
from services.auth.errors import InvalidChallenge
from services.local.valkey import ValkeyServer
from shared.errors import DependencyUnavailable
from shared.stores.redis import Client, connect

KEY = "key"


def challenges(redis: Client) -> Challenges:
    return Challenges([b"secret"], lifetime=300, redis=redis)


async def use(
    made: Challenges, challenge: str, error: BaseException | None = None, sent: tuple[bytes, ...] = (b"sent",)
) -> None:
    async with made.consumed(challenge, KEY, *sent):
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [DependencyUnavailable("postgres"), asyncio.CancelledError(), KeyError()])
async def test_what_has_not_succeeded_may_be_sent_again_and_nothing_else(redis_url: str, error: BaseException) -> None:
    async with connect(redis_url) as redis:
        made = challenges(redis)
        challenge = made.issue(KEY)
        for _ in range(2):
            with pytest.raises(type(error)):
                await use(made, challenge, error)
        for other in ((b"other",), (), (b"sen", b"t"), (b"sent", b"")):
            with pytest.raises(InvalidChallenge):
                await use(made, challenge, sent=other)
        await use(made, challenge)
        with pytest.raises(InvalidChallenge):
            await use(made, challenge)


async def test_of_equal_attempts_at_the_same_time_one_succeeds(redis_url: str) -> None:
    async with connect(redis_url) as redis:
        made = challenges(redis)
        challenge = made.issue(KEY)
        inside = asyncio.Barrier(6)

        async def attempt() -> None:
            async with made.consumed(challenge, KEY, b"sent"):
                await inside.wait()

        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*(attempt() for _ in range(6)), return_exceptions=True)
        assert sorted(str(type(outcome).__name__) for outcome in outcomes) == ["InvalidChallenge"] * 5 + ["NoneType"]


@pytest.mark.parametrize("decided", [True, False])
async def test_work_that_redis_cannot_be_told_of_is_a_success_only_where_it_decides_itself(
    own_valkey: ValkeyServer, decided: bool
) -> None:
    async with connect(own_valkey.url) as redis:
        made = challenges(redis)
        challenge = made.issue(KEY)

        async def work() -> None:
            async with made.consumed(challenge, KEY, b"sent") as mine:
                own_valkey.kill()
                mine.decided = decided

        if decided:
            await work()
        else:
            with pytest.raises(DependencyUnavailable):
                await work()


@pytest.mark.parametrize(("ahead", "good"), [(0, True), (29, True), (30, True), (31, False), (3600, False)])
async def test_the_clock_of_another_replica_may_be_30_seconds_ahead(redis_url: str, ahead: int, good: bool) -> None:
    async with connect(redis_url) as redis:
        now = 1_800_000_000
        issued = Challenges([b"secret"], lifetime=300, redis=redis, clock=lambda: now + ahead).issue(KEY)
        here = Challenges([b"secret"], lifetime=300, redis=redis, clock=lambda: now)
        if good:
            here.check(issued, KEY)
        else:
            with pytest.raises(InvalidChallenge):
                here.check(issued, KEY)


async def test_a_used_challenge_is_remembered_for_longer_than_any_replica_takes_it(redis_url: str) -> None:
    async with connect(redis_url) as redis:
        made = challenges(redis)
        await use(made, made.issue(KEY))
        (name,) = [key async for key in redis.scan_iter("mlpa:{*}:c:*")]
        assert 328 <= await redis.ttl(name) <= 331


@asynccontextmanager
async def losing_the_first_answer_to(command: bytes, redis_url: str) -> AsyncIterator[str]:
    """A way to Redis on which the connection breaks once: after the server has done the command, before it said so."""
    target = urlsplit(redis_url)
    lost = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lost
        server_reader, server = await asyncio.open_connection(target.hostname, target.port)

        async def answers(after: asyncio.Event) -> None:
            nonlocal lost
            while data := await server_reader.read(65536):
                if after.is_set() and not lost:
                    lost = True
                    break
                writer.write(data)
            writer.close()

        asked = asyncio.Event()
        task = asyncio.create_task(answers(asked))
        while data := await reader.read(65536):
            if command in data:
                asked.set()
            server.write(data)
        server.close()
        await task

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
    assert lost
    listener.close()


@pytest.mark.parametrize("command", [b"\r\nNX\r\n", b"\r\nKEEPTTL\r\n"])
async def test_an_answer_that_is_lost_does_not_make_a_good_challenge_a_used_one(redis_url: str, command: bytes) -> None:
    async with losing_the_first_answer_to(command, redis_url) as url, contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(url))
        await redis.ping()
        made = challenges(redis)
        challenge = made.issue(KEY)
        await use(made, challenge)
        with pytest.raises(InvalidChallenge):
            await use(made, challenge)
