"""The one log line of each request: its outcome, its cost, and LiteLLM's id of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.gateway.errors import BudgetExceeded
from services.gateway.upstream.routing import call_id
from tests.doubles.litellm import Script, answer, chunk, error_body, event, stream_of
from tests.services.gateway.conftest import Gateway, RawClient, request_body

CALL = {"x-litellm-call-id": "call-1"}
Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with capture_logs() as captured:
        yield captured


async def line(gateway: Gateway, lines: Lines) -> dict[str, Any]:
    """The only line of a request, without the times."""
    await gateway.until_logged(lines)
    (found,) = (dict(one) for one in lines if one["event"] == "request")
    assert found.pop("duration_ms") > 0
    assert found.pop("ttft_ms", None) is None or found["outcome"] != "refused"
    assert len(found.pop("user") or "") in (0, 16)
    expected = {"event": "request", "log_level": "info", "source": "http", "method": "POST"}
    assert {name: found.pop(name) for name in expected} == expected
    assert found.pop("route") == "/v1/chat/completions"
    return found


async def test_a_stream_is_logged_with_tokens_cost_and_litellms_id(gateway: Gateway, lines: Lines) -> None:
    gateway.double.script("double", Script.events(stream_of(["Hello", " you"], prompt=10), headers=CALL))
    await gateway.read({"stream": True})
    assert await line(gateway, lines) == {
        "status": 200,
        "service_type": "ai",
        "model": "double",
        "outcome": "success",
        "error": None,
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "cost_usd": 7e-9,
        "litellm_call_id": "call-1",
    }


async def test_the_time_to_the_first_event_is_that_of_a_stream(gateway: Gateway, lines: Lines) -> None:
    gateway.double.script("double", Script.events(stream_of(["Hello"])))
    await gateway.read({"stream": True})
    await gateway.until_logged(lines)
    (streamed,) = (one for one in lines if one["event"] == "request")
    assert 0 < streamed["ttft_ms"] <= streamed["duration_ms"]
    lines.clear()
    gateway.double.script("double", Script.json(answer()))
    await gateway.read()
    await gateway.until_logged(lines)
    (whole,) = (one for one in lines if one["event"] == "request")
    assert whole["ttft_ms"] is None


async def test_a_stream_that_breaks_is_logged_with_its_error_though_its_status_was_200(
    gateway: Gateway, lines: Lines
) -> None:
    gateway.double.script("double", Script([("send", event(chunk("abc"))), ("cut", None)], headers=CALL))
    await gateway.read({"stream": True})
    found = await line(gateway, lines)
    assert (found["status"], found["outcome"], found["error"]) == (200, "error", "upstream_error")
    assert (found["completion_tokens"], found["litellm_call_id"]) == (3, "call-1")


async def test_an_error_event_is_logged_by_its_code(gateway: Gateway, lines: Lines) -> None:
    parts = [event(chunk("abc")), event(error_body("secret host gpu-7", "throttling_error", "429"))]
    gateway.double.script("double", Script.events(parts))
    await gateway.read({"stream": True})
    found = await line(gateway, lines)
    assert (found["status"], found["outcome"], found["error"]) == (200, "error", "upstream_rate_limited")
    assert "gpu-7" not in json.dumps(found)


async def test_an_error_of_litellm_has_its_id_too(gateway: Gateway, lines: Lines) -> None:
    gateway.double.script("double", Script.json(error_body("x", None, "500"), 500, **{"x-litellm-call-id": "call-2"}))
    await gateway.read()
    found = await line(gateway, lines)
    assert (found["status"], found["outcome"], found["error"]) == (502, "error", "upstream_error")
    assert (found["cost_usd"], found["litellm_call_id"]) == (0, "call-2")


async def test_a_client_that_leaves_is_logged_as_an_abort(gateway: Gateway, lines: Lines) -> None:
    gateway.double.script("double", Script([("send", event(chunk("abc"))), ("hang", None)], headers=CALL))
    client = await gateway.connect({"stream": True})
    await client.until(b"abc")
    client.reset()
    found = await line(gateway, lines)
    assert (found["status"], found["outcome"], found["error"]) == (499, "abort", None)
    assert found["litellm_call_id"] == "call-1"


async def test_a_request_that_is_not_admitted_is_logged_with_its_model(gateway: Gateway, lines: Lines) -> None:
    gateway.budgets.refuse = BudgetExceeded(retry_after=5)
    await gateway.read()
    assert await line(gateway, lines) == {
        "status": 429,
        "service_type": "ai",
        "model": "double",
        "outcome": "refused",
        "error": "budget_exceeded",
    }


async def test_a_client_that_leaves_before_its_body_has_come_is_logged_too(gateway: Gateway, lines: Lines) -> None:
    client = await RawClient.open(gateway.port, None)
    client.ask(request_body(), declare=1000)
    async with asyncio.timeout(5):
        while not gateway.metric("in_progress_requests", endpoint="/v1/chat/completions"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    client.reset()
    found = await line(gateway, lines)
    assert (found["status"], found["outcome"], found["model"]) == (499, "abort", None)


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", 'a"b', "a\nb", "ü"])
def test_an_id_of_litellm_that_is_not_a_plain_one_is_left_out(given: str) -> None:
    assert call_id({"x-litellm-call-id": given}) is None
    assert call_id({}) is None
