"""The pool of connections to LiteLLM, and LiteLLM dying under it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest

from services.gateway.settings import GatewaySettings
from services.gateway.upstream import connector
from services.gateway.upstream.client import LiteLLM
from shared.errors import DependencyUnavailable
from shared.telemetry.metrics import Registry
from tests.doubles.litellm import LiteLLMDouble, Script, answer, chunk, event
from tests.services.gateway.conftest import Gateway
from tests.support.configs import SETTINGS, changed, upstream_at
from tests.support.waiting import until


@pytest.fixture
async def double() -> AsyncIterator[LiteLLMDouble]:
    async with LiteLLMDouble() as double:
        yield double


async def test_connections_are_kept_and_used_again(double: LiteLLMDouble) -> None:
    async with Gateway(double, upstream_at(double.url)).running() as gateway:
        for stream in (False, True) * 5:
            assert (await gateway.read({"stream": stream}))[0] == 200
        assert double.connections <= 2  # the requests', and the health checks'


async def test_sockets_to_litellm_are_small_and_notice_a_vanished_host(double: LiteLLMDouble) -> None:
    double.script("double", Script([("send", event(chunk("a"))), ("hang", None)]))
    async with LiteLLM.open(upstream_at(double.url), Registry()) as litellm, litellm.call() as call:
        response = await call.post("v1/chat/completions", b'{"model":"double","stream":true}', {})
        assert response.connection is not None
        assert response.connection.transport is not None
        sock = response.connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == connector.USER_TIMEOUT_MS
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * connector.RECEIVE_BUFFER


async def test_the_next_instance_is_asked_when_one_cannot_be_reached(double: LiteLLMDouble, unused_port: int) -> None:
    upstream = upstream_at(f"http://127.0.0.1:{unused_port}", double.url)
    async with Gateway(double, upstream).running() as gateway:
        for _ in range(6):
            assert (await gateway.read())[0] == 200
        assert len(double.asked) == 6
        assert all(instance.open == 0 for instance in gateway.litellm.balancer.instances)


async def test_a_request_that_went_out_is_never_sent_twice(double: LiteLLMDouble) -> None:
    double.script("double", Script(first=[("reset", None)]))
    upstream = upstream_at(double.url, double.url)
    async with Gateway(double, upstream).running() as gateway:
        status, _, headers = await gateway.read()
        assert (status, headers["x-should-retry"]) == (502, "false")
        assert len(double.asked) == 1


BIG = {"messages": [{"role": "user", "content": "x" * 1_000_000}]}


class Stub:
    """A LiteLLM of bare sockets, which answers so many requests on each connection and then closes it.

    :param answers: requests that it answers per connection, by the connection's number; 1 for further ones.
    :param reads: bytes that it takes of a request which it does not answer.
    :param keeps_checks: keeps the connection of a health check, for whatever request comes next.
    """

    def __init__(self, *answers: int, reads: int, keeps_checks: bool = False) -> None:
        self._answers, self._reads, self._keeps_checks = answers, reads, keeps_checks
        self.checks = 0
        self.heads = 0
        self.whole = 0
        self.connections = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(self._serve, sock=listening, limit=4096)
        async with server:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):  # from Python 3.12.1 on, the server ends only when all its connections are closed
            await self._answer(reader, writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        while b"/health/" in head:
            kept = b"keep-alive" if self._keeps_checks else b"close"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: %b\r\n\r\n{}" % kept)
            self.checks += 1
            if not self._keeps_checks:
                writer.close()
                return
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return  # the gateway ended
        self.connections += 1
        left = self._answers[self.connections - 1] if self.connections <= len(self._answers) else 1
        body = json.dumps(answer()).encode()
        while True:
            self.heads += 1
            size = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
            if not left:
                while self._reads > 0:
                    self._reads -= len(await reader.read(min(size, self._reads)))
                writer.transport.abort()
                return
            left -= 1
            await reader.readexactly(size)
            self.whole += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return  # the gateway ended


async def test_a_kept_connection_that_closes_while_a_request_is_written_is_replaced_by_a_new_one(
    double: LiteLLMDouble,
) -> None:
    """LiteLLM closed it just then; it can't have acted on a part of a request."""
    stub = Stub(1, 1, reads=10_000)
    async with stub.running() as url, Gateway(double, upstream_at(url)).running() as gateway:
        assert (await gateway.read())[0] == 200
        assert (await gateway.read(BIG))[0] == 200
        assert (stub.heads, stub.whole, stub.connections) == (3, 2, 2)
        assert (await gateway.budgets.wait_settled(2)).outcome == "success"


async def test_a_connection_that_a_health_check_left_is_a_kept_one() -> None:
    stub = Stub(0, 1, reads=10_000, keeps_checks=True)
    async with stub.running() as url:
        config = upstream_at(url, health_interval=60)
        async with LiteLLM.open(config, Registry()) as litellm:
            await until(lambda: stub.checks == 1)
            assert await litellm.check(litellm.balancer.instances[0])
            connections = stub.connections
            async with litellm.call() as call:
                response = await call.post("v1/chat/completions", json.dumps(BIG).encode(), {})
                assert response.status == 200
                assert await call.read_answer(lambda _size: None)
            assert (connections, stub.connections, stub.whole) == (0, 2, 1)


async def test_a_new_connection_that_closes_while_a_request_is_written_is_an_error(double: LiteLLMDouble) -> None:
    stub = Stub(0, reads=10_000)
    async with stub.running() as url, Gateway(double, upstream_at(url)).running() as gateway:
        assert (await gateway.read(BIG))[0] == 502
        assert (stub.heads, stub.connections) == (1, 1)
        assert (await gateway.budgets.wait_settled()).sent


async def test_the_second_connection_is_the_last_that_is_tried(double: LiteLLMDouble) -> None:
    stub = Stub(1, 0, reads=10_000)
    async with stub.running() as url, Gateway(double, upstream_at(url)).running() as gateway:
        assert (await gateway.read())[0] == 200
        assert (await gateway.read(BIG))[0] == 502
        assert (stub.heads, stub.connections) == (3, 2)


async def test_a_kept_connection_that_closes_with_a_whole_request_is_an_error(double: LiteLLMDouble) -> None:
    """LiteLLM may have acted on it: it is not sent twice, and is charged."""
    stub = Stub(1, 1, reads=0)
    async with stub.running() as url, Gateway(double, upstream_at(url)).running() as gateway:
        assert (await gateway.read())[0] == 200
        status, _, headers = await gateway.read()
        assert (status, headers["x-should-retry"]) == (502, "false")
        assert (stub.heads, stub.connections) == (2, 1)


async def test_model_info_is_had_or_said_to_be_unavailable(double: LiteLLMDouble, unused_port: int) -> None:
    async with LiteLLM.open(upstream_at(double.url), Registry()) as litellm:
        assert b'"model_name": "double"' in await litellm.model_info()
    async with LiteLLM.open(upstream_at(f"http://127.0.0.1:{unused_port}"), Registry()) as litellm:
        with pytest.raises(DependencyUnavailable):
            await litellm.model_info()


async def test_an_instance_whose_name_cannot_be_resolved_is_out_and_still_checked() -> None:
    """The resolver raises a UnicodeError for a label of more than 63 characters."""
    registry = Registry()
    upstream = upstream_at(f"http://{'a' * 64}.example", health_interval=0.01)
    async with LiteLLM.open(upstream, registry) as litellm:
        (instance,) = litellm.balancer.instances
        await until(lambda: instance.failed_checks >= 3)
        assert not litellm.healthy
        assert registry.background_failures.value("litellm_health") == 0


class TestDeath:
    """LiteLLM in a process of its own."""

    @asynccontextmanager
    async def _running(self, settings: GatewaySettings) -> AsyncIterator[tuple[Gateway, int]]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.doubles.litellm", stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            port = int(await process.stdout.readline())
            upstream = upstream_at(f"http://127.0.0.1:{port}", health_interval=0.05, health_timeout=0.3)
            async with Gateway(LiteLLMDouble(), upstream, settings).running() as gateway:
                yield gateway, process.pid
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def test_a_killed_litellm_ends_streams_with_an_error_and_costs_nothing_more(self) -> None:
        async with (
            self._running(SETTINGS) as (gateway, pid),
            gateway.post({"model": "slow", "stream": True}) as got,
        ):
            await got.content.readuntil(b"\n\n")
            os.kill(pid, signal.SIGKILL)
            body = await got.read()
            assert b'"code":"upstream_error"' in body
            assert b"[DONE]" not in body
            assert (await gateway.budgets.wait_settled()).outcome == "error"
            await until(lambda: not gateway.litellm.healthy)
            assert (await gateway.read())[0] == 502
            assert not (await gateway.budgets.wait_settled(2)).sent

    async def test_a_stopped_litellm_is_a_timeout_and_comes_back(self) -> None:
        settings = changed(streaming_timeout_seconds=0.5, keepalive_seconds=0.2)
        async with self._running(settings) as (gateway, pid):
            async with gateway.post({"model": "slow", "stream": True}) as got:
                await got.content.readuntil(b"\n\n")
                os.kill(pid, signal.SIGSTOP)
                assert b'"code":"upstream_timeout"' in await got.read()
            assert (await gateway.budgets.wait_settled()).outcome == "timeout"
            await until(lambda: not gateway.litellm.healthy)
            assert (await gateway.read())[0] == 504
            os.kill(pid, signal.SIGCONT)
            await until(lambda: gateway.litellm.healthy)
            assert (await gateway.read())[0] == 200
