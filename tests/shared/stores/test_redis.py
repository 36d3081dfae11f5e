"""Redis as the services reach it: its errors and its URLs."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from redis.exceptions import ReadOnlyError

from services.gateway.redis.executor import Executor
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.errors import DependencyUnavailable
from shared.stores import redis
from shared.stores.dependency import SETTLED, Dependency
from shared.stores.redis import Client, Place, RedisError, can_write, connect
from tests.support.valkey_cluster import ValkeyCluster
from tests.support.waiting import until


@asynccontextmanager
async def client(url: str, state: Dependency) -> AsyncIterator[Client]:
    made = connect(url, state=state)
    try:
        yield made
    finally:
        await made.aclose()


async def refusals(url: str) -> set[str]:
    """The reasons that readiness gives over both clients, auth's and the gateways'."""
    state = Dependency("redis")
    async with client(url, state) as auth, Executor.open(url, ()) as gateway:
        with pytest.raises(DependencyUnavailable) as first:
            await can_write(auth, state)
        with pytest.raises(DependencyUnavailable) as second:
            await gateway.can_write()
    assert first.value.dependency == second.value.dependency == "redis"
    return {first.value.reason, second.value.reason}


async def test_a_wrong_and_a_missing_password_are_named_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ValkeyServer(tmp_path / "valkey", free_port(), password="right") as server:
        wrong = await refusals(server.url.replace(":right@", ":hunter2@"))
        assert wrong == {"the server refuses the user name or password (WRONGPASS)"}
        assert await refusals(server.url.replace(":right@", "")) == {"the server wants a password (NOAUTH)"}
    output = capsys.readouterr().out
    assert "hunter2" not in output
    assert output.count("dependency_out") == 4, "one line for each client, however often it is asked"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "the server's memory is full (OOM)"),
        (("REPLICAOF", "127.0.0.1", "1"), "the server is a replica and takes no writes (READONLY)"),
        (
            ("CONFIG", "SET", "min-replicas-to-write", "1"),
            "the server has too few replicas to take writes (NOREPLICAS)",
        ),
        (("ACL", "SETUSER", "default", "-set"), "the user lacks a right (NOPERM)"),
    ],
)
async def test_a_server_that_takes_no_writes_is_not_ready(
    tmp_path: Path, command: tuple[str, ...], reason: str
) -> None:
    with ValkeyServer(tmp_path / "valkey", free_port()) as server:
        with server.client() as admin:
            admin.execute_command(*command)
        assert await refusals(server.url) == {reason}


@pytest.mark.parametrize(
    ("url", "words"),
    [("redis://127.0.0.1:1", "Connect call failed"), ("redis://no-such-host.invalid", "no-such-host.invalid")],
)
async def test_what_keeps_a_connection_from_being_made_is_named(url: str, words: str) -> None:
    assert all(words in reason for reason in await refusals(url))


async def test_a_url_can_not_ask_for_pushes_between_the_replies(redis_url: str) -> None:
    client = connect(f"{redis_url}?protocol=3")
    hello = await client.execute_command("HELLO")
    assert hello[hello.index(b"proto") + 1] == 2
    await client.aclose()


async def test_a_demoted_primary_is_left_for_where_its_name_leads_now(own_valkey: ValkeyServer) -> None:
    client = connect(own_valkey.url)
    first = await client.client_id()
    await client.execute_command("REPLICAOF", "127.0.0.1", "1")

    async def another_connection() -> bool:
        with pytest.raises(ReadOnlyError):
            await client.set("one", "1")
        return await client.client_id() != first

    await until(another_connection)
    await client.aclose()


async def test_one_answer_in_two_tries_suffices(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "valkey", free_port())
    async with Executor.open(server.url, ()) as gateway:
        checking = asyncio.create_task(gateway.can_write())
        await until(lambda: gateway.state.reason)  # the first try is over
        await asyncio.to_thread(server.start)
        await checking
        server.stop()


async def test_a_dead_node_of_a_cluster_leaves_the_others_ready(tmp_path: Path) -> None:
    with ValkeyCluster(tmp_path) as cluster:
        async with Executor.open(cluster.url, ()) as gateway:
            await gateway.can_write()
            cluster.nodes[1].kill()
            await gateway.can_write()


#: A node that is gone, as its client sees it: at first, and once the others have noticed.
GONE = r".*Connect call failed.*|the cluster has no owner for some slots \(CLUSTERDOWN\)"


async def test_a_connection_that_a_proxy_closes_at_once_is_made_again(tmp_path: Path) -> None:
    """A proxy's own server has just died, and the next connection goes to another."""
    connections = 0

    async def front(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            answers, commands = await asyncio.open_connection("127.0.0.1", server.port)
            await asyncio.wait(
                [asyncio.ensure_future(copy(reader, commands)), asyncio.ensure_future(copy(answers, writer))]
            )
        writer.close()

    with ValkeyServer(tmp_path / "valkey", free_port()) as server:
        async with await asyncio.start_server(front, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            async with client(f"redis://127.0.0.1:{port}/1", Dependency("redis")) as auth:
                assert await auth.set("key", "1")


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


async def test_the_loss_of_a_node_is_told_at_once_and_over_when_it_is_back(tmp_path: Path) -> None:
    """Every command and pipeline fails as one of a single server does, in time, until the node is back."""
    state = Dependency("redis")
    with ValkeyCluster(tmp_path) as cluster:
        async with client(cluster.url, state) as auth:
            keys = [f"{{{number}}}" for number in range(30)]
            for key in keys:
                await auth.set(key, "1")
            cluster.nodes[1].kill()
            reasons = set()
            while not any("CLUSTERDOWN" in reason for reason in reasons):
                for key in keys:
                    reasons.add(await failure(auth.set(key, "2")))
                    await failure(auth.pipeline().set(key, "2").execute())
            reasons -= {"", "no answer in time"}  # the latter on a machine that is busy with other things
            assert all(re.fullmatch(GONE, reason) for reason in reasons), reasons
            with pytest.raises(DependencyUnavailable) as caught:
                await can_write(auth, state)
            assert re.fullmatch(GONE, caught.value.reason)
            await asyncio.to_thread(cluster.nodes[1].start)
            async with asyncio.timeout(10):
                while any([await failure(auth.set(key, "3")) for key in keys]):
                    pass


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_loss_of_a_node_fails_each_of_many_commands_at_once_as_a_fault_of_redis(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """redis-py closes a node's connections at the first failure, also those that other commands are opening."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_lose_a_node(tmp_path))


async def _lose_a_node(tmp_path: Path) -> None:
    with ValkeyCluster(tmp_path) as cluster:
        async with client(cluster.url, Dependency("redis")) as auth:
            auth.set_response_callback("STRLEN", lambda reply: reply.no_such_thing)  # type: ignore[no-untyped-call]
            with pytest.raises(AttributeError, match="no_such_thing"):  # our own fault, not the connection's
                await auth.strlen("x")
            assert all(await asyncio.gather(*(auth.set(f"{{{number}}}", "1") for number in range(50))))

            async def work(first: int) -> None:
                for number in range(6):
                    await failure(auth.set(f"{{{first + number}}}", "2"))
                    await failure(auth.pipeline().set(f"{{{first - number}}}", "2").execute())

            working = [asyncio.create_task(work(1000 * number)) for number in range(30)]
            cluster.nodes[1].kill()
            await asyncio.gather(*working)


async def test_a_cluster_that_is_gone_is_told_as_what_it_is(tmp_path: Path) -> None:
    state = Dependency("redis")
    with ValkeyCluster(tmp_path) as cluster:
        async with client(cluster.url, state) as auth:
            await auth.set("key", "1")
            for node in cluster.nodes:
                node.kill()
            for _ in range(3):
                assert "Connect call failed" in await failure(auth.set("key", "2"))
                assert "Connect call failed" in await failure(auth.pipeline().set("key", "2").execute())


async def test_a_server_that_is_no_cluster_is_told_as_that(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey", free_port()) as server:
        async with client(server.url.replace("redis:", "redis+cluster:"), Dependency("redis")) as auth:
            assert "Cluster mode is not enabled" in await failure(auth.get("key"))


async def failure(call: Awaitable[object]) -> str:
    """The reason why a call failed, which it does in time; empty if it didn't."""
    began = time.monotonic()
    try:
        await call
    except RedisError as error:
        return redis.reason(error)
    finally:
        assert time.monotonic() - began < 3
    return ""


async def test_a_password_that_rotates_is_read_for_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    with ValkeyServer(tmp_path / "valkey", free_port(), password="first") as server:
        url = f"redis://127.0.0.1:{server.port}?password_file={file}"
        redis.check_url(url)
        state = Dependency("redis")
        async with client(url, state) as auth, Executor.open(url, ()) as gateway:
            await can_write(auth, state)
            await gateway.can_write()
            with server.client() as admin:
                admin.execute_command("CONFIG", "SET", "requirepass", "second")
                admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                file.write_text("second")
                await can_write(auth, state)
                await gateway.can_write()
                file.unlink()
                admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            with pytest.raises(DependencyUnavailable) as caught:
                await can_write(auth, state)
            assert "password file" in caught.value.reason


@pytest.mark.parametrize(
    ("url", "plain", "clustered"),
    [
        ("redis://h:1/2", "redis://h:1/2", False),
        ("redis+cluster://u:p@h:1", "redis://u:p@h:1", True),
        ("rediss+cluster://h?ssl_ca_certs=/ca.pem", "rediss://h?ssl_ca_certs=/ca.pem", True),
        ("rediss://u@h:1?password_file=/run/p&ssl_ca_certs=/ca.pem", "rediss://h:1?ssl_ca_certs=%2Fca.pem", False),
    ],
)
def test_where_a_url_leads(url: str, plain: str, clustered: bool) -> None:
    redis.check_url(url)
    place = Place.of(url)
    assert (place.url, place.clustered) == (plain, clustered)
    assert (place.credentials is not None) == ("password_file" in url)


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis+sentinel://h",
        "redis://u:pa/ss@h",
        "redis://:pass@h?password_file=/run/p",
        "redis://[",
        "redis://h?tiemout=5",
    ],
)
def test_a_url_that_can_not_work_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"must be|has a password") as caught:
        redis.check_url(url)
    assert "pa/ss" not in str(caught.value)


def test_an_outage_is_two_lines_however_often_it_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    state = Dependency("redis", now=lambda: clock[0])
    for step in range(50):
        state.failed("no answer in time")
        clock[0] += 0.1
        if step % 2:
            state.answered()
    assert state.reason == "no answer in time"
    clock[0] += SETTLED
    state.answered()
    state.answered()
    assert state.reason is None
    output = capsys.readouterr().out
    assert (output.count("dependency_out"), output.count("dependency_back")) == (1, 1)


async def test_a_good_answer_ends_an_outage_unless_it_says_nothing_of_writes(own_valkey: ValkeyServer) -> None:
    clock = [0.0]
    state = Dependency("redis", now=lambda: clock[0])
    async with client(own_valkey.url, state) as auth:
        await auth.get("x")
        for reason, still in (
            ("no answer in time", False),
            ("the server is still loading its data (LOADING)", False),
            ("the server is a replica and takes no writes (READONLY)", True),
        ):
            state.failed(reason)
            clock[0] += SETTLED
            await auth.get("x")
            assert (state.reason is not None) is still, reason
        await can_write(auth, state)
        assert state.reason is None
