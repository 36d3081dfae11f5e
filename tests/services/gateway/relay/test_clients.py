"""Clients that leave, stall, or send bytes that nobody asked for."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

from services.gateway.relay.connection import SEND_BUFFER, RelayProtocol
from shared.service.serve import USER_TIMEOUT_MS
from tests.doubles.litellm import LiteLLMDouble, Script, answer, chunk, event, stream_of
from tests.services.gateway.conftest import Gateway, RawClient, request_body
from tests.support.configs import changed, upstream_at
from tests.support.waiting import until

WITHIN = 0.1

STAGES: dict[str, tuple[dict[str, Any], Script]] = {
    "before headers": ({"stream": True}, Script(first=[("hang", None)])),
    "before the first event": ({"stream": True}, Script([("send", b": hello\n\n"), ("hang", None)])),
    "mid-stream": ({"stream": True}, Script([("send", event(chunk("abc"))), ("hang", None)])),
    "inside an event": ({"stream": True}, Script([("send", event(chunk("abc")) + b"data: {"), ("hang", None)])),
    "not a stream": ({}, Script(first=[("hang", None)], content_type="application/json")),
    "inside an answer": ({}, Script([("send", b"{"), ("hang", None)], content_type="application/json")),
}


async def _left(gateway: Gateway, way: str, client: RawClient) -> float:
    """Make the client leave; returns how long LiteLLM's connection outlived it."""
    asked = gateway.double.asked[-1]
    started = time.monotonic()
    if way == "FIN":
        client.close()
    elif way == "half-close":
        client.writer.write_eof()
    else:
        client.reset()
    async with asyncio.timeout(5):
        await asked.ended.wait()
    assert asked.state == "gone"
    return asked.ended_at - started


@pytest.mark.parametrize("way", ["FIN", "half-close", "RST"])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_client_that_leaves_ends_the_upstream_request_at_once(gateway: Gateway, stage: str, way: str) -> None:
    body, script = STAGES[stage]
    gateway.double.script("double", script)
    begun = stage in ("mid-stream", "inside an event")
    times = []
    for number in range(1, 4):
        client = await gateway.connect(body)
        await gateway.double.wait_asked(number)
        if begun:
            await client.until(b"abc")
        times.append(await _left(gateway, way, client))
        delivery = await gateway.budgets.wait_settled(number)
        assert (delivery.outcome, delivery.sent, delivery.refused) == ("abort", True, False)
        assert delivery.relayed_bytes == (3 if begun else 0)
        assert len(gateway.open_requests) == 0
        client.close()
    assert sorted(times)[1] < WITHIN, times
    side, reason = ("excluded", "abort") if begun else ("failure", "abort_before_answer")
    assert gateway.metric("chat_availability_total", outcome=side, reason=reason) == 3
    assert gateway.metric("chat_availability_total") == 3


async def test_a_client_that_leaves_behind_a_pipelined_body_is_seen_leaving(gateway: Gateway) -> None:
    gateway.double.script("double", STAGES["mid-stream"][1])
    client = await gateway.connect({"stream": True})
    await client.until(b"abc")
    client.ask(request_body(), declare=3_000_000)
    client.writer.write(b" " * 50_000)
    await client.writer.drain()
    await until(lambda: _ahead(gateway) >= 50_000)
    assert gateway.double.open == 1  # what was sent ahead ends nothing
    assert await _left(gateway, "FIN", client) < WITHIN


def _ahead(gateway: Gateway) -> int:
    (connection,) = gateway.connections
    assert isinstance(connection, RelayProtocol)
    return connection._ahead()


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_client_may_send_64_kib_ahead_and_no_more(gateway: Gateway, at_once: bool) -> None:
    """Also in one write with the end of its request, when no answer has begun."""
    gateway.double.script("double", STAGES["mid-stream"][1])
    client = await gateway.connect({"stream": True})
    if not at_once:
        await client.until(b"abc")
    client.ask(request_body(), declare=3_000_000)
    client.writer.write(b" " * 100_000)
    async with asyncio.timeout(5):
        await client.cut_off()
    if not at_once:
        assert (await gateway.budgets.wait_settled()).outcome == "abort"
    await until(lambda: not len(gateway.open_requests))
    client.close()


async def test_requests_sent_ahead_are_answered_one_after_the_other(gateway: Gateway) -> None:
    """More than 64 KiB in all: bytes ahead of one request do not count for the next."""
    text = {"messages": [{"role": "user", "content": "x" * 30_000}]}
    gateway.double.script("double", Script.json(answer("the end")))
    client = await gateway.connect(text)
    for number in range(1, 6):
        client.ask(request_body(**text))
        await client.until(b"the end")
        await gateway.budgets.wait_settled(number)
    await client.until(b"the end")
    client.close()


async def test_a_client_that_sends_ahead_without_end_is_cut_off(gateway: Gateway) -> None:
    gateway.double.script("double", STAGES["mid-stream"][1])
    client = await gateway.connect({"stream": True})
    await client.until(b"abc")
    for _ in range(40):
        client.ask(request_body())
    async with asyncio.timeout(5):
        await gateway.double.asked[0].ended.wait()
    assert (await gateway.budgets.wait_settled()).outcome == "abort"


async def test_two_requests_on_one_connection_are_both_answered(gateway: Gateway) -> None:
    client = await gateway.connect({"stream": True})
    client.ask(request_body())
    await client.until(b"[DONE]")
    await client.until(b'"usage"')
    client.close()


async def test_a_client_that_leaves_after_done_had_a_success(gateway: Gateway) -> None:
    whole = b"".join(stream_of(["a"]))
    gateway.double.script("double", Script([("send", whole), ("hang", None)]))
    client = await gateway.connect({"stream": True})
    await client.until(b"[DONE]\n\n\r\n0\r\n\r\n")  # the end isn't kept waiting for LiteLLM's
    client.close()
    assert (await gateway.budgets.wait_settled()).outcome == "success"


async def test_hundreds_of_clients_that_vanish_leave_nothing(gateway: Gateway) -> None:
    gateway.double.script("double", Script.events([event(chunk("x"))] * 20, pause=0.01))
    dice = random.Random(4)
    before = len(asyncio.all_tasks())

    async def visit() -> None:
        client = await gateway.connect({"stream": dice.random() < 0.8})
        await asyncio.sleep(dice.random() * 0.15)
        if dice.random() < 0.5:
            client.reset()
        else:
            client.close()

    await asyncio.gather(*(visit() for _ in range(300)))
    await until(lambda: not (gateway.budgets.open or gateway.double.open or len(gateway.open_requests)))
    assert b'response_status_codes_total{status_code="500"} 0\n' in gateway.registry.render(), "leaving is no error"
    await until(lambda: len(asyncio.all_tasks()) <= before + 10)
    assert not gateway.litellm._session.connector._acquired  # type: ignore[union-attr]


class TestSlow:
    @pytest.fixture
    async def gateway(self, double: LiteLLMDouble) -> AsyncIterator[Gateway]:
        settings = changed(slow_client_seconds=0.4, streaming_timeout_seconds=5)
        async with Gateway(double, upstream_at(double.url), settings).running() as gateway:
            yield gateway

    async def test_a_client_that_takes_nothing_holds_litellm_back_and_is_dropped(self, gateway: Gateway) -> None:
        gateway.double.script("double", Script([("flood", event(chunk("x" * 2000)))]))
        client = await gateway.connect({"stream": True}, receive_buffer=4096)
        asked = await gateway.double.wait_asked()
        await asyncio.sleep(0.2)
        after_a_while = asked.delivered
        await asyncio.sleep(0.15)
        assert asked.delivered == after_a_while  # LiteLLM was held back
        delivery = await gateway.budgets.wait_settled()
        assert delivery.outcome == "abort"
        assert delivery.relayed_bytes < 600_000
        assert gateway.metric("chat_slow_clients_total") == 1
        async with asyncio.timeout(2):
            await asked.ended.wait()
        client.close()

    async def test_a_client_that_takes_a_little_at_times_is_kept(self, double: LiteLLMDouble) -> None:
        double.script("double", Script.events([*[event(chunk("x" * 2000))] * 300, *stream_of(["end"])]))
        settings = changed(slow_client_seconds=1)  # less than it takes in all, more than a busy machine may rest
        async with Gateway(double, upstream_at(double.url), settings).running() as gateway:
            client = await gateway.connect({"stream": True}, receive_buffer=4096)
            got = b""
            for _ in range(25):
                await asyncio.sleep(0.1)
                got += await client.reader.read(30_000)
            while not got.endswith(b"0\r\n\r\n"):
                part = await client.reader.read(30_000)
                assert part, "the connection was closed"
                got += part
            assert b"[DONE]" in got
            assert (await gateway.budgets.wait_settled()).outcome == "success"
            client.close()

    async def test_a_client_that_takes_nothing_of_a_whole_answer_is_dropped(self, gateway: Gateway) -> None:
        gateway.double.script("double", Script.json(answer("x" * 4_000_000)))
        client = await gateway.connect(receive_buffer=4096)
        await until(lambda: gateway.answers.held > 4_000_000)
        await until(lambda: gateway.metric("chat_slow_clients_total") == 1)
        await until(lambda: gateway.answers.held == 0)
        client.close()

    async def test_a_client_that_takes_a_whole_answer_too_slowly_is_dropped(self, double: LiteLLMDouble) -> None:
        """It has five times as long as one that takes nothing."""
        settings = changed(slow_client_seconds=0.2)
        async with Gateway(double, upstream_at(double.url), settings).running() as gateway:
            double.script("double", Script.json(answer("x" * 8_000_000)))
            client = await gateway.connect(receive_buffer=100_000)
            await until(lambda: gateway.answers.held > 8_000_000)
            with suppress(ConnectionError):
                while gateway.answers.held:
                    await client.reader.read(100_000)
                    await asyncio.sleep(0.05)
            await until(lambda: gateway.metric("chat_slow_clients_total") == 1)
            client.close()


@pytest.mark.parametrize(("most", "others"), [(20_000_000, 13_000_000), (12_000_000, 0)], ids=["all", "one user"])
async def test_large_answers_have_a_limit_together_until_their_clients_have_them(
    gateway: Gateway, most: int, others: int
) -> None:
    """One user may hold half of it."""
    gateway.answers.most_bytes, gateway.answers.held = most, others
    large, small = answer("x" * 4_000_000), answer("x" * 60_000)
    gateway.double.script("double", Script.json(large, x_litellm_response_cost="0.5"))
    slow = await gateway.connect(receive_buffer=4096)
    await until(lambda: gateway.answers.held > others + 4_000_000 and gateway.budgets.settled)
    status, body, headers = await gateway.read()
    assert (status, b"upstream_error" in body, headers["x-should-retry"]) == (502, True, "false")
    refused = gateway.budgets.settled[1][1]
    assert (refused.usage, refused.response_cost, refused.stream) == (None, Decimal("0.5"), False)
    gateway.double.script("double", Script.json(small))
    assert (await gateway.read())[0] == 200
    slow.reset()
    await until(lambda: gateway.answers.held == others)
    gateway.double.script("double", Script.json(large))
    assert (await gateway.read())[:2] == (200, json.dumps(large).encode())
    await until(lambda: gateway.answers.held == others and not gateway.answers.of_users)


async def test_the_end_of_a_stream_shows_at_once_to_a_client_of_http_1_0(gateway: Gateway) -> None:
    client = await RawClient.open(gateway.port, None)
    client.ask(request_body(stream=True), version="1.0")
    async with asyncio.timeout(10):
        assert (await client.reader.read()).endswith(b"data: [DONE]\n\n")
    client.close()


async def test_a_vanished_network_is_noticed_by_the_kernel(gateway: Gateway) -> None:
    gateway.double.script("double", STAGES["mid-stream"][1])
    client = await gateway.connect({"stream": True})
    await client.until(b"abc")
    (connection,) = gateway.connections
    assert connection.transport is not None
    sock = connection.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == USER_TIMEOUT_MS
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * SEND_BUFFER
    client.close()
