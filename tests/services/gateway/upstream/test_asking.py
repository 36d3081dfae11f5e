"""Requests to LiteLLM as they are written."""

from __future__ import annotations

import asyncio

import pytest
from multidict import CIMultiDict
from yarl import URL

from services.gateway.upstream.asking import Target
from services.gateway.upstream.client import LiteLLM, UpstreamConfig
from shared.telemetry.metrics import Registry


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


async def test_an_answer_that_comes_before_all_of_the_request_was_sent_is_read() -> None:
    async def refuse_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 \r\nContent-Length: 2\r\n\r\n{}")
        await reader.readexactly(5_000_000)
        writer.close()

    server = await asyncio.start_server(refuse_early, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        config = UpstreamConfig((f"http://127.0.0.1:{port}",), health_interval=60)
        async with LiteLLM.open(config, Registry()) as litellm, litellm.call() as call:
            answer = await call.post("v1/chat/completions", b"x" * 5_000_000, {})
            assert (answer.status, await call.read_error()) == (413, b"{}")
