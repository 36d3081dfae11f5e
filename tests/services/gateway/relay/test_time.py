"""Time limits, keep-alive comments, ends from outside: silence and shutdown as a client sees them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from services.gateway.errors import UserBlocked
from services.gateway.settings import GatewaySettings
from tests.doubles.litellm import DONE, LiteLLMDouble, Script, chunk, event, stream_of
from tests.services.gateway.conftest import Gateway
from tests.support.configs import SETTINGS, changed, upstream_at

COMMENT = b": keep-alive\n\n"
STREAM = {"stream": True}


@pytest.fixture
def settings() -> GatewaySettings:
    return changed(streaming_timeout_seconds=0.6, keepalive_seconds=0.1)


def error_code(body: bytes) -> str:
    return json.loads(body.rstrip().rsplit(b"data: ", 1)[1])["error"]["code"]


async def test_silence_before_the_first_event_is_filled_with_comments(gateway: Gateway) -> None:
    parts = stream_of(["a"])
    gateway.double.script("double", Script([("send", b"".join(parts))], first=[("sleep", 0.28)]))
    status, body, _ = await gateway.read(STREAM)
    assert status == 200
    assert body.startswith(COMMENT * 2)
    assert body.replace(COMMENT, b"") == b"".join(parts[:-2]) + DONE


async def test_comments_are_put_between_events_only(gateway: Gateway) -> None:
    first, second = event(chunk("a")), event(chunk("b"))
    gateway.double.script(
        "double", Script([("send", first + second[:20]), ("sleep", 0.25), ("send", second[20:] + DONE)])
    )
    _, body, _ = await gateway.read(STREAM)
    assert body == first + second + DONE


async def test_a_comment_is_no_data_for_the_idle_timeout(gateway: Gateway) -> None:
    gateway.double.script("double", Script([("send", event(chunk("abc"))), ("hang", None)]))
    status, body, _ = await gateway.read(STREAM)
    assert status == 200
    assert body.startswith(event(chunk("abc")) + COMMENT)
    assert error_code(body) == "upstream_timeout"
    delivery = await gateway.budgets.wait_settled()
    assert (delivery.outcome, delivery.relayed_bytes) == ("timeout", 3)
    assert gateway.metric("chat_availability_total", outcome="failure", reason="upstream_timeout") == 1


PINGS = [("send", b": ping\n\n"), ("sleep", 0.04)] * 40


async def test_comments_of_litellm_hold_back_neither_ours_nor_a_timeout(gateway: Gateway) -> None:
    gateway.double.script("double", Script(PINGS))
    began = time.monotonic()
    async with gateway.post(STREAM) as response:
        await response.content.readuntil(COMMENT)
        assert time.monotonic() - began < 0.5
        body = await response.read()
    assert error_code(body) == "upstream_timeout"
    assert time.monotonic() - began < 1.2


async def test_comments_of_litellm_are_no_data_after_an_event(gateway: Gateway) -> None:
    gateway.double.script("double", Script([("send", event(chunk("abc"))), *PINGS]))
    _, body, _ = await gateway.read(STREAM)
    assert COMMENT in body
    assert error_code(body) == "upstream_timeout"


async def test_an_answer_that_never_comes_is_a_504(gateway: Gateway) -> None:
    gateway.double.script("double", Script(first=[("hang", None)]))
    status, body, headers = await gateway.read()
    assert (status, json.loads(body)["error"]["code"]) == (504, "upstream_timeout")
    assert headers["x-should-retry"] == "false"
    assert (await gateway.budgets.wait_settled()).outcome == "timeout"


async def test_data_keeps_a_stream_alive(gateway: Gateway) -> None:
    gateway.double.script("double", Script.events([event(chunk("x"))] * 8 + [DONE], pause=0.08))
    _, body, _ = await gateway.read(STREAM)
    assert body.replace(COMMENT, b"") == event(chunk("x")) * 8 + DONE


async def test_a_block_ends_an_open_stream_with_its_error(gateway: Gateway) -> None:
    gateway.double.script("double", Script([("send", event(chunk("abc"))), ("hang", None)]))
    async with gateway.post(STREAM) as response:
        await response.content.readuntil(b"\n\n")
        (reservation,) = gateway.budgets.open.values()
        reservation.revoked.set_result(UserBlocked())
        assert error_code(await response.read()) == "user_blocked"
    assert (await gateway.budgets.wait_settled()).outcome == "error"


async def test_a_block_before_the_first_event_is_a_plain_403(gateway: Gateway) -> None:
    gateway.double.script("double", Script(first=[("hang", None)]))
    asking = asyncio.create_task(gateway.read())
    await gateway.double.wait_asked()
    (reservation,) = gateway.budgets.open.values()
    reservation.revoked.set_result(UserBlocked())
    assert (await asking)[0] == 403


class TestTotal:
    @pytest.fixture
    def settings(self) -> GatewaySettings:
        return changed(streaming_timeout_seconds=0.6, keepalive_seconds=0.1, total_timeout_seconds=0.3)

    async def test_a_request_may_be_limited_however_busy_it_is(self, gateway: Gateway) -> None:
        gateway.double.script("double", Script.events([event(chunk("x"))] * 100, pause=0.02))
        _, body, _ = await gateway.read(STREAM)
        assert error_code(body) == "upstream_timeout"


class TestDrain:
    @pytest.fixture
    def settings(self) -> GatewaySettings:
        return SETTINGS

    async def test_streams_may_finish_and_new_requests_are_refused(self, gateway: Gateway) -> None:
        gateway.double.script("double", Script([("send", event(chunk("a"))), ("gate", "go"), ("send", DONE)]))
        async with gateway.post(STREAM) as response:
            await response.content.readuntil(b"\n\n")
            draining = asyncio.create_task(gateway.open_requests.finish(5))
            await asyncio.sleep(0.02)
            status, body, headers = await gateway.read()
            assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
            assert headers["Retry-After"]
            gateway.double.open_gate("go")
            assert await response.read() == DONE
        await draining

    async def test_what_is_left_is_ended_with_an_error_event_and_settled(self, gateway: Gateway) -> None:
        gateway.double.script("double", Script([("send", event(chunk("abc"))), ("hang", None)]))
        responses = [await gateway.post(STREAM) for _ in range(3)]
        for response in responses:
            await response.content.readuntil(b"\n\n")
        await gateway.open_requests.finish(0.05)
        for response in responses:
            assert error_code(await response.read()) == "unavailable"
        assert len(gateway.budgets.settled) == 3


class TestLimit:
    @pytest.fixture
    async def gateway(self, double: LiteLLMDouble) -> AsyncIterator[Gateway]:
        async with Gateway(double, upstream_at(double.url), max_open_requests=2).running() as gateway:
            yield gateway

    async def test_one_request_too_many_is_a_503(self, gateway: Gateway) -> None:
        gateway.double.script("double", Script([("send", event(chunk("a"))), ("gate", "go"), ("send", DONE)]))
        responses = [await gateway.post(STREAM) for _ in range(2)]
        assert (await gateway.read())[0] == 503
        gateway.double.open_gate("go")
        for response in responses:
            await response.read()
        assert (await gateway.read({"model": "other"}))[0] == 200
