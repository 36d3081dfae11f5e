"""The bounds on a connection's memory, and the refusals beyond them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings, strategies as st

from shared.errors import ServiceError
from shared.service.protocol import ServiceSite
from shared.service.serve import listen
from shared.service.web import Frame
from shared.telemetry.logs import UserDigest
from shared.telemetry.metrics import Registry
from tests.support.waiting import until

MAX_BODY = 100_000
MAX_HEAD = 4096
MAX_FIELD = 1024
CANARY = b"canary-5d10b2"


def render(_request: web.Request | None, error: ServiceError) -> web.Response:
    return web.json_response({"code": error.code}, status=error.status, headers=error.headers)


class Served:
    """A service whose ``/slow`` answers once the test lets it, and whose other paths answer with their body's size."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.let = asyncio.Event()
        self.registry = Registry()
        self.read = 0

    async def answer(self, request: web.Request) -> web.Response:
        async for part in request.content.iter_any():
            self.read += len(part)
        return web.Response(text=str(self.read))

    async def slow(self, _request: web.Request) -> web.Response:
        await self.let.wait()
        return web.Response(text="slow")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Served]:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/slow", self.slow)
        app.router.add_route("*", "/{any}", self.answer)
        frame = Frame(self.registry, render, endpoints=["/slow", "/{any}"], user_digest=UserDigest(None))
        frame.install(app)
        self.runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self.runner.setup()
        sock = listen("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        limits = {"max_body": MAX_BODY, "max_head": MAX_HEAD, "max_field": MAX_FIELD, "read_bufsize": 1024}
        site = ServiceSite(self.runner, sock, frame, **limits, **self.options)
        await site.start()
        yield self
        await self.runner.cleanup()

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))

    async def reads(self, size: int) -> None:
        """Wait until so much of bodies has been read."""
        await until(lambda: self.read >= size)

    async def runs(self) -> None:
        """Wait until a request is being answered."""
        await until(lambda: any(connection.busy for connection in self.connections))

    @property
    def connections(self) -> list[Any]:
        assert self.runner.server is not None
        return self.runner.server.connections


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def flood(self, size: int) -> None:
        """Chunks of a body, as fast as they are taken."""
        for _ in range(size // 65536):
            self.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await self.writer.drain()
            await asyncio.sleep(0)

    async def rest(self) -> bytes:
        """All until the server ends its side."""
        async with asyncio.timeout(5):
            return await self.reader.read()

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of one answer that has a length."""
        async with asyncio.timeout(5):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length
            return int(head.split()[1]), await self.reader.readexactly(int(length[1]))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with Served().running() as one:
        yield one


def head(*fields: bytes, method: bytes = b"POST", path: bytes = b"/a", end: bytes = b"\r\n\r\n") -> bytes:
    return b"\r\n".join((b"%b %b HTTP/1.1" % (method, path), b"Host: a", *fields)) + end


UPGRADE = head(b"Upgrade: websocket", b"Connection: upgrade", method=b"GET")


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.\d (\d{3}) ", answers)]


def fields(size: int) -> list[bytes]:
    """Fields of about ``size`` bytes together, each within its own limit."""
    return [b"X-%d: %b" % (number, b"y" * 500) for number in range(size // 510)]


@pytest.mark.parametrize("coding", [b"gzip", b"GZIP", b"br", b"deflate", b"zstd", b"x", b"identity, gzip", b"gzip\t"])
@pytest.mark.parametrize(("method", "path"), [(b"POST", b"/a"), (b"GET", b"/a"), (b"PUT", b"/no/such/path")])
async def test_a_compressed_body_is_refused_from_the_head(
    served: Served, method: bytes, path: bytes, coding: bytes
) -> None:
    client = await served.connect()
    client.send(head(b"Content-Encoding: " + coding, b"Content-Length: 5000", method=method, path=path))
    status, body = await client.answer()  # before any of the body is sent
    assert (status, json.loads(body)) == (415, {"code": "invalid_request"})
    client.send(b"x" * 5000 + head(method=b"GET"))  # the rest is discarded, and the connection stays open
    assert (await client.answer())[0] == 200
    assert served.read == 0


async def test_a_body_that_says_that_it_is_not_compressed_is_taken(served: Served) -> None:
    client = await served.connect()
    client.send(head(b"Content-Encoding: Identity", b"Content-Length: 5") + b"12345")
    assert await client.answer() == (200, b"5")


async def test_a_compressed_body_is_never_inflated(served: Served) -> None:
    bomb = gzip.compress(b"\0" * 60_000_000)
    assert len(bomb) < MAX_BODY
    client = await served.connect()
    tracemalloc.start()
    client.send(head(b"Content-Encoding: gzip", b"Content-Length: %d" % len(bomb), b"Connection: close") + bomb)
    assert statuses(await client.rest()) == [415]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3_000_000


async def test_what_comes_after_a_refusal_is_read_up_to_a_limit(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    client = await served.connect()
    client.send(head(b"Content-Encoding: gzip", b"Transfer-Encoding: chunked"))
    assert (await client.answer())[0] == 415
    with pytest.raises(ConnectionError):
        await client.flood(100 * 65536)
    assert served.read == 0
    assert not caplog.records


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head(*fields(3500)), 200),
        (head(*fields(4700)), 431),
        (head(*fields(4700), end=b""), 431),  # a head that never ends
        (head(b"X: " + b"y" * 1000), 200),
        (head(b"X: " + b"y" * 1100), 431),
        (head(b"X: " + b"y" * 1100, end=b""), 431),
        (head(b"y" * 1100 + b": x"), 431),
        (head(path=b"/" + b"a" * 3900), 200),
        (head(path=b"/" + b"a" * 4200), 431),
        (b"GET /" + b"a" * 4200, 431),
        (head(*[b"a: b"] * 200), 431),
        (head(*[b"a: b"] * 20), 200),
    ],
)
@pytest.mark.parametrize("pieces", [1, 7, 100])
async def test_a_head_has_a_limit_as_a_whole_and_for_each_field(
    served: Served, data: bytes, status: int, pieces: int
) -> None:
    client = await served.connect()
    size = -(-len(data) // pieces)
    for start in range(0, len(data), size):
        client.send(data[start : start + size])
        await asyncio.sleep(0)
    code, body = await client.answer()
    assert code == status
    if status == 431:
        assert json.loads(body) == {"code": "invalid_request"}
        assert await client.rest() == b""  # the connection ends
        assert f'response_status_codes_total{{status_code="{status}"}} 1' in served.registry.render().decode()


async def test_a_refusal_of_a_head_is_read_by_a_client_that_goes_on_sending(served: Served) -> None:
    client = await served.connect()
    client.send(head(end=b"\r\n"))
    for _ in range(40):
        client.send(b"\r\n".join(fields(10_000)))
    assert statuses(await client.rest()) == [431]


async def test_unfinished_heads_hold_next_to_nothing(served: Served) -> None:
    clients = [await served.connect() for _ in range(20)]
    tracemalloc.start()
    for client in clients:
        client.send(head(*fields(4000), end=b""))
    await until(lambda: sum(connection._silent > 3000 for connection in served.connections) == len(clients))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20 * 4 * MAX_HEAD
    for client in clients:
        client.send(b"\r\n\r\n")
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    "trailers", [b"\r\n".join(fields(9000)), b"X: " + b"y" * 1100, b"X y\r\n\r\n"], ids=["many", "long", "malformed"]
)
async def test_trailers_have_the_limit_of_a_head(served: Served, trailers: bytes) -> None:
    client = await served.connect()
    client.send(head(b"Transfer-Encoding: chunked") + b"2\r\nhi\r\n")
    await served.reads(2)
    client.send(b"0\r\n" + trailers)
    assert statuses(await client.rest())[0] == 400


async def test_chunks_that_say_much_and_hold_nothing_are_refused(served: Served) -> None:
    client = await served.connect()
    client.send(head(b"Transfer-Encoding: chunked") + b"2\r\nhi\r\n")
    await served.reads(2)
    client.send(b"2;" + b"x" * 9000)
    assert statuses(await client.rest())[0] == 400


class TestTime:
    @pytest.fixture
    async def served(self) -> AsyncIterator[Served]:
        async with Served(head_seconds=0.2).running() as one:
            yield one

    @pytest.mark.parametrize("first", [b"", b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"])
    async def test_a_head_that_is_not_complete_in_time_ends_the_connection(self, served: Served, first: bytes) -> None:
        client = await served.connect()
        if first:
            client.send(first)
            assert (await client.answer())[0] == 200
        client.send(b"GET /a HT")
        assert statuses(await client.rest()) == [408]

    async def test_bytes_that_trickle_win_no_time(self, served: Served) -> None:
        client = await served.connect()
        trickling = asyncio.create_task(self._trickle(client))
        assert statuses(await client.rest()) == [408]
        trickling.cancel()

    async def _trickle(self, client: Client) -> None:
        client.send(b"GET / HTTP/1.1\r\nX: ")
        while True:
            client.send(b"x")
            await asyncio.sleep(0.02)

    async def test_an_idle_connection_and_a_slow_body_are_no_heads(self, served: Served) -> None:
        idle, slow = await served.connect(), await served.connect()
        slow.send(head(b"Content-Length: 10") + b"12345")
        await asyncio.sleep(0.4)
        slow.send(b"67890")
        assert await slow.answer() == (200, b"10")
        idle.send(head(method=b"GET"))
        assert (await idle.answer())[0] == 200

    async def test_a_head_sent_ahead_of_its_turn_does_not_end_the_answer_before_it(self, served: Served) -> None:
        client = await served.connect()
        client.send(head(method=b"GET", path=b"/slow"))
        await served.runs()
        client.send(b"GET /a HT")
        await asyncio.sleep(0.4)
        served.let.set()
        assert await client.answer() == (200, b"slow")
        client.send(b"TP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.answer())[0] == 200


async def test_what_is_malformed_is_answered_in_its_turn_and_not_kept(served: Served) -> None:
    client = await served.connect()
    client.send(head(method=b"GET", path=b"/slow"))
    await served.runs()
    tracemalloc.start()
    for _ in range(30):
        client.send(CANARY + b"\0" * 20_000)
        await asyncio.sleep(0.005)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2_000_000
    served.let.set()
    answers = await client.rest()
    assert statuses(answers) == [200, 400]
    assert CANARY not in answers


async def test_many_requests_in_one_piece_are_all_answered(served: Served) -> None:
    client = await served.connect()
    client.send((head(b"Content-Length: 1") + b"x") * 200)
    client.send(head(*fields(4700)))
    answers = statuses(await client.rest())
    assert answers == [200] * 200 + [431]


@pytest.mark.parametrize(("tail", "status"), [(head(*fields(4700)), 431), (b"\0", 400)])
async def test_what_follows_an_upgrade_is_held_to_the_same_bounds(served: Served, tail: bytes, status: int) -> None:
    client = await served.connect()
    client.send(UPGRADE * 3 + tail)
    assert statuses(await client.rest()) == [200] * 3 + [status]


class TestAnyBytes:
    @given(
        parts=st.lists(
            st.one_of(
                st.binary(max_size=200),
                st.sampled_from(
                    [
                        head(method=b"GET"),
                        head(b"Content-Length: 3") + b"abc",
                        head(b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n",
                        head(b"Transfer-Encoding: chunked") + b"0\r\nX: y\r\n\r\n",
                        head(b"Content-Encoding: gzip", b"Content-Length: 3") + b"abc",
                        head(*fields(5000)),
                        head(*fields(2000), end=b""),
                        UPGRADE,
                        b"\r\n",
                    ]
                ),
            ),
            max_size=6,
        ),
        size=st.integers(1, 3000),
    )
    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_no_bytes_get_a_500_or_leave_a_connection_behind(self, parts: list[bytes], size: int) -> None:
        asyncio.run(self._send(b"".join(parts), size))

    async def _send(self, data: bytes, size: int) -> None:
        async with Served().running() as served:
            client = await served.connect()
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(data), size):
                    client.send(data[start : start + size])
                    await client.writer.drain()
                client.writer.write_eof()
                answers = statuses(await client.rest())
                assert all(status < 500 for status in answers), answers
            client.writer.transport.abort()
            await until(lambda: not served.connections)
