"""Requests to LiteLLM as they are written."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
import uvloop
from aiohttp.connector import Connection
from multidict import CIMultiDict
from yarl import URL

from services.gateway.upstream.asking import Target, ask
from services.gateway.upstream.client import LiteLLM
from services.gateway.upstream.connector import SEND_BUFFER, Connector, Wire
from shared.telemetry.metrics import Registry
from tests.support.configs import upstream_at


async def test_a_head_has_the_common_fields_those_of_the_request_and_the_length_of_its_body() -> None:
    target = Target(URL("http://name:word@host:4000/base/v1/x"), CIMultiDict({"Accept": "*/*"}))
    first, *fields = target.head({"X-Request-ID": "r1"}, 7).decode().split("\r\n")
    assert first == "POST /base/v1/x HTTP/1.1"
    assert fields[-3:] == ["Content-Length: 7", "", ""]
    assert {"Host: host:4000", "Accept: */*", "X-Request-ID: r1"} < set(fields)
    assert [field for field in fields if field.lower().startswith(("content-length", "transfer-encoding"))] == [
        "Content-Length: 7"
    ]


@pytest.mark.parametrize("value", ["a\r\nX-Forged: 1", "a\nb", "a\rb", "ü"])
async def test_a_field_cannot_add_another_one(value: str) -> None:
    target = Target(URL("http://host"), CIMultiDict())
    with pytest.raises(ValueError):
        target.head({"X-Request-ID": value}, 0)


@asynccontextmanager
async def asking(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[LiteLLM]:
    """A client of a server that serves each connection so."""

    async def serve_until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve_until_closed, "127.0.0.1", 0)
    async with server:
        config = upstream_at(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", health_interval=60)
        async with LiteLLM.open(config, Registry()) as litellm:
            yield litellm


@pytest.mark.parametrize("reads_on", [True, False])
async def test_an_answer_that_comes_before_all_of_the_request_was_sent_is_read(reads_on: bool) -> None:
    answered = asyncio.Event()

    async def refuse_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 \r\nContent-Length: 2\r\n\r\n{}")
        if reads_on:
            await reader.readexactly(9_000_000)
        await answered.wait()

    async with asking(refuse_early) as litellm, litellm.call() as call:
        try:
            async with asyncio.timeout(10):
                answer = await call.post("v1/chat/completions", b"x" * 9_000_000, {})
                assert (answer.status, await call.read_error()) == (413, b"{}")
        finally:
            answered.set()


class LosingConnector(Connector):
    """Its connections are lost between the look at them and the writing of a request."""

    def __init__(self, listening: socket.socket, *, reset: bool) -> None:
        super().__init__(keepalive=4)
        self._listening, self._reset = listening, reset

    async def lend(self, req: aiohttp.ClientRequest, timeout: aiohttp.ClientTimeout, wire: Wire) -> Connection:
        connection = await super().lend(req, timeout, wire)
        peer, _ = self._listening.accept()
        if self._reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        return connection


@pytest.mark.parametrize(("size", "reset"), [(SEND_BUFFER + 1, False), (SEND_BUFFER + 1, True), (10, True)])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_request_that_the_kernel_does_not_take_is_not_written(
    loop: Callable[[], asyncio.AbstractEventLoop], size: int, reset: bool
) -> None:
    """So it is sent again."""

    async def ask_in_vain() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            async with LosingConnector(listening, reset=reset) as connector:
                target = Target(URL(f"http://127.0.0.1:{listening.getsockname()[1]}/"), CIMultiDict())
                wire = Wire()
                wire.body = b"x" * size
                with pytest.raises(aiohttp.ClientConnectionError):
                    await ask(connector, aiohttp.ClientTimeout(sock_connect=5), target, {}, wire)
                assert (wire.used, wire.written, len(wire.body)) == (True, False, size)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(ask_in_vain())


async def test_what_follows_an_answer_is_never_the_answer_of_another_request() -> None:
    begun = asyncio.Event()

    async def answer_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"POST" in await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await begun.wait()
            writer.write(b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nanother")

    async with asking(answer_twice) as litellm:
        for _ in range(2):
            async with litellm.call() as call:
                begun.clear()
                await call.post("v1/chat/completions", b"", {})
                begun.set()
                assert await call.read_answer(lambda _: None) == b"ok"


async def test_what_comes_on_an_idle_connection_is_not_an_answer() -> None:
    async def give_up_waiting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"POST" in await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await idle.wait()
            writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            gave_up.set()

    idle, gave_up = asyncio.Event(), asyncio.Event()
    async with asking(give_up_waiting) as litellm:
        for _ in range(2):
            async with litellm.call() as call:
                assert (await call.post("v1/chat/completions", b"", {})).status == 200
                assert await call.read_answer(lambda _: None) == b"ok"
            idle.set()
            await gave_up.wait()
