"""Slow bodies delay only their sender."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.gateway.relay.bodies import AT_ONCE
from tests.doubles.litellm import LiteLLMDouble
from tests.services.gateway.conftest import TOKEN, Gateway, request_body
from tests.support.configs import upstream_at

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def gateway(double: LiteLLMDouble) -> AsyncIterator[Gateway]:
    async with Gateway(double, upstream_at(double.url), max_open_requests=2, body_patience=0.5).running() as one:
        yield one


@asynccontextmanager
async def slow_senders(gateway: Gateway, number: int) -> AsyncIterator[list[Connection]]:
    """They have sent a request but for the end of its body."""
    body = json.dumps(request_body()).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body) + 1}\r\n\r\n"
    connections = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(number)]
    for _, writer in connections:
        writer.write(head.encode() + body)
    try:
        yield connections
    finally:
        for _, writer in connections:
            writer.close()


async def test_unfinished_bodies_take_no_place_of_open_requests(gateway: Gateway) -> None:
    async with slow_senders(gateway, 2 * AT_ONCE):
        assert (await gateway.read())[0] == 200


async def test_bodies_of_one_user_take_turns_and_are_all_served(gateway: Gateway) -> None:
    async with slow_senders(gateway, 2 * AT_ONCE) as connections:
        for reader, writer in connections:  # one after the other: the second half waits for the first
            writer.write(b" ")
            assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"


async def test_a_body_that_does_not_come_in_time_is_refused(gateway: Gateway) -> None:
    async with slow_senders(gateway, 2 * AT_ONCE) as connections:
        async with asyncio.timeout(3):
            answers = [await reader.readuntil(b"\r\n") for reader, _ in connections]
    assert {answer.split()[1] for answer in answers} == {b"400"}
    assert (await gateway.read())[0] == 200
