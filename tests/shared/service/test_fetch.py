"""Requests to other services: whatever the other side does, it ends in time, within bounds, and as one error."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate

import aiohttp
import pytest
from hypothesis import given, strategies as st

from shared.service import fetch
from shared.service.fetch import Answer, NoAnswer

LIMIT = 1000


@asynccontextmanager
async def raw_server(
    *answers: bytes | None, then: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """The URL of a server, and the heads that it read.

    Each connection gets the next answer, and the last one from then on; None resets it.
    """
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            found = re.search(rb"Content-Length: (\d+)", heads[-1])
            await reader.readexactly(int(found[1]) if found else 0)
            answer = answers[min(len(heads), len(answers)) - 1]
            if answer is not None:
                writer.write(answer)
                await writer.drain()
                if then is not None:
                    await then(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/it", heads
    finally:
        server.close()


def answer(body: bytes = b"{}", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\xfe\x00", b'{"broken', b"x" * LIMIT], ids=range(5))
async def test_a_body_within_the_limit_is_returned_as_it_came(session: aiohttp.ClientSession, body: bytes) -> None:
    async with raw_server(answer(body)) as (url, _):
        assert await fetch.get(session, url, limit=LIMIT, timeout=5) == body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FAULTS: dict[str, tuple[bytes | None, str]] = {
    "a byte too many": (answer(b"x" * (LIMIT + 1)), "too_large"),
    "too much in chunks": (CHUNKED + b"190\r\n" + b"x" * 400 + b"\r\n190\r\n" + b"x" * 400 + b"\r\n190\r\n", "timeout"),
    "too much without an end": (CHUNKED + b"800\r\n" + b"x" * 2048 + b"\r\n", "too_large"),
    "too much after decompression": (
        answer(gzip.compress(b"x" * 100_000), "200 OK", "Content-Encoding: gzip"),
        "too_large",
    ),
    "a body that is shorter than it says": (answer(b"x" * 10).replace(b"Length: 10", b"Length: 11"), "timeout"),
    "a redirect": (answer(b"", "302 Found", "Location: /elsewhere"), "status"),
    "a redirect for ever": (answer(b"", "308 Permanent Redirect", "Location: /it"), "status"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "status"),
    "an error": (answer(b"{}", "500 Internal Server Error"), "status"),
    "too many requests": (answer(b"{}", "429 Too Many Requests"), "rate_limited"),
    "a reset": (None, "connection"),
    "no HTTP": (b"\x00\x01\x02\r\n\r\n", "connection"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", "timeout"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_an_answer_out_of_bounds_is_none(session: aiohttp.ClientSession, name: str) -> None:
    raw, reason = FAULTS[name]
    hold = asyncio.Event()

    async def stay(_writer: asyncio.StreamWriter) -> None:
        await hold.wait()

    async with raw_server(raw, then=stay) as (url, _):
        with pytest.raises(NoAnswer) as caught:
            async with asyncio.timeout(5):
                await fetch.get(session, url, limit=LIMIT, timeout=0.5)
        hold.set()
    assert (caught.value.reason, caught.value.sent) == (reason, True)


async def test_an_answer_that_trickles_ends_with_the_whole_time(session: aiohttp.ClientSession) -> None:
    async def trickle(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with raw_server(CHUNKED, then=trickle) as (url, _):
        with pytest.raises(NoAnswer, match="timeout"):
            async with asyncio.timeout(5):
                await fetch.get(session, url, limit=LIMIT, timeout=0.2)


async def test_a_redirect_is_not_followed(session: aiohttp.ClientSession) -> None:
    async with raw_server(answer()) as (other, heads):
        async with raw_server(answer(b"", "302 Found", f"Location: {other}")) as (url, _):
            got = await fetch.ask(session, "GET", url, limit=LIMIT, timeout=5)
        assert (got.status, heads) == (302, [])


async def test_without_a_connection_nothing_was_sent(session: aiohttp.ClientSession, unused_port: int) -> None:
    with pytest.raises(NoAnswer) as caught:
        await fetch.get(session, f"http://127.0.0.1:{unused_port}", limit=LIMIT, timeout=5)
    assert (caught.value.reason, caught.value.sent) == ("connection", False)


async def test_an_address_without_https_is_not_asked_when_it_must_have_it(session: aiohttp.ClientSession) -> None:
    async with raw_server(answer()) as (url, heads):
        with pytest.raises(NoAnswer) as caught:
            await fetch.get(session, url, limit=LIMIT, timeout=5, https_only=True)
    assert (caught.value.reason, caught.value.sent, heads) == ("insecure", False, [])


async def test_a_lost_connection_is_tried_once_more_only_when_that_does_no_harm(session: aiohttp.ClientSession) -> None:
    async with raw_server(None, answer(b"second")) as (url, heads):
        with pytest.raises(NoAnswer, match="connection"):
            await fetch.ask(session, "POST", url, json={}, limit=LIMIT, timeout=5)
        assert len(heads) == 1
    async with raw_server(None, answer(b"second")) as (url, heads):
        got = await fetch.ask(session, "POST", url, json={}, limit=LIMIT, timeout=5, again=True)
        assert (got.body, len(heads)) == (b"second", 2)
    async with raw_server(None) as (url, heads):
        with pytest.raises(NoAnswer, match="connection"):
            await fetch.ask(session, "POST", url, json={}, limit=LIMIT, timeout=5, again=True)
        assert len(heads) == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("7", 7), ("0", 0), (formatdate(1090, usegmt=True), 90), (formatdate(900, usegmt=True), 0)),
        *((text, None) for text in ("soon", "-5", "1.5", "\u0663", "Tue, 99 Foo 2026 00:00:00 GMT", "")),
    ],
)
def test_the_wish_to_be_asked_later_is_passed_on(text: str, seconds: float | None) -> None:
    error = Answer(503, {"Retry-After": text}, b"").unexpected(lambda: 1000.0)
    assert (error.reason, error.retry_after) == ("status", seconds)


@given(st.binary(max_size=200))
async def test_no_bytes_make_it_fail_otherwise(raw: bytes) -> None:
    async with aiohttp.ClientSession() as session:
        for given_bytes in (raw, b"HTTP/1.1 200 OK\r\n" + raw, CHUNKED + raw):
            async with raw_server(given_bytes) as (url, _):
                with contextlib.suppress(NoAnswer):
                    assert len(await fetch.get(session, url, limit=50, timeout=1)) <= 50
