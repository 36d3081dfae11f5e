"""The memory of a request: neither an open nor a refused one holds its body."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.gateway.chat.request import parse
from services.gateway.errors import GatewayError
from services.gateway.relay import views
from services.gateway.relay.operation import permitted
from services.gateway.relay.relay import Relay
from tests.doubles.litellm import Script, chunk, event, stream_of
from tests.services.gateway.conftest import Gateway, Models
from tests.support.service_types import service_type
from tests.support.waiting import until

OPEN = 10
BODY = 500_000
FULL = bool(os.environ.get("MLPA_TEST_FULL"))
WAITING = {
    "for the headers of the answer": Script(first=[("hang", None)]),
    "for the first event": Script([("send", b": hello\n\n"), ("hang", None)]),
    "in the middle of the answer": Script([("send", event(chunk("abc"))), ("hang", None)]),
}
CASES = list(product(WAITING, (True, False)) if FULL else zip(WAITING, (True, False, True), strict=True))
#: Where the gateway, and aiohttp for it, would hold a body. The double and the test's client hold it elsewhere.
HOLDERS = (
    f"{Path(views.__file__).parents[1]}/*",
    "*/aiohttp/streams.py",
    "*/aiohttp/payload.py",
    "*/aiohttp/web_protocol.py",
)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def _held() -> int:
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, holder) for holder in HOLDERS])
    return sum(statistic.size for statistic in snapshot.statistics("filename"))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("stage", "stream"), CASES)
async def test_a_body_is_let_go_of_once_it_is_sent(gateway: Gateway, stage: str, stream: bool) -> None:
    gateway.double.script("double", WAITING[stage])
    before = _held()
    text = "x" * BODY
    clients = [
        await gateway.connect({"stream": stream, "messages": [{"role": "user", "content": text}]}) for _ in range(OPEN)
    ]
    await gateway.double.wait_asked(OPEN)
    await until(lambda: _held() - before < OPEN * 50_000)
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("body", "refuse"),
    [
        (
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":"hot"}',
            lambda b: parse(b, frozenset()),
        ),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":', lambda b: parse(b, frozenset())),
        (b"not allowed", lambda b: permitted("gpt", service_type(models=("others",)), Models())),
    ],
)
def test_a_refused_body_is_let_go_of_without_a_garbage_collection(
    body: bytes, refuse: Callable[[bytes], object]
) -> None:
    gc.disable()
    try:
        before = sys.getrefcount(body)
        with pytest.raises(GatewayError) as caught:
            refuse(body)
        del caught
        assert sys.getrefcount(body) == before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("body", "script"),
    [
        ({"stream": True}, Script.events(stream_of(["Hello"]))),
        ({"stream": True}, Script([("send", event(chunk("abc"))), ("cut", None)])),
        ({}, Script(status=500)),
        ({"stream": True}, Script(status=500)),
        ({}, Script(first=[("reset", None)])),
        ({}, Script([("send", b"{"), ("cut", None)])),
    ],
)
async def test_nothing_of_a_request_that_has_ended_waits_for_a_garbage_collection(
    gateway: Gateway, body: dict[str, Any], script: Script
) -> None:
    gateway.double.script("double", script)
    gc.collect()  # what tests before this one cut off
    gc.disable()
    try:
        with suppress(aiohttp.ClientError):
            await gateway.read(body)
        await until(lambda: not any(isinstance(each, Relay) for each in gc.get_objects()))
    finally:
        gc.enable()
