"""Firefox for desktop with the SDK that it has: OpenAI's for JavaScript, its retries, and its rule for a 401."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from aiohttp import web

from tests.clients import node_client
from tests.doubles.litellm import Script, chunk, error_body, event
from tests.services.gateway.firefox.clients import chat
from tests.services.gateway.firefox.conftest import Door

pytestmark = pytest.mark.skipif(node_client.missing() is not None, reason=str(node_client.missing()))


async def call(door: Door, *tokens: str, service_type: str = "ai", purpose: str = "chat", **body: Any) -> Any:
    given = {
        "url": f"{door.url}/v1",
        "tokens": tokens,
        "serviceType": service_type,
        "purpose": purpose,
        "body": chat(tools=[], **body),
    }
    return await asyncio.to_thread(node_client.run_desktop, given)


async def test_it_is_answered(door: Door) -> None:
    for stream in (False, True):
        result = await call(door, door.auth.fxa_token(), stream=stream)
        assert result == {"text": "Hello", "error": None, "used": 1, "requests": 1}, stream


async def test_a_bad_token_is_dropped_and_the_next_one_tried_once(door: Door) -> None:
    result = await call(door, "a" * 64, door.auth.fxa_token())
    assert (result["text"], result["used"], result["requests"]) == ("Hello", 2, 2), "the SDK repeats no 401"
    result = await call(door, "b" * 64, "c" * 64)
    assert (result["error"]["status"], result["used"]) == (401, 2)
    assert "401 status code" in result["error"]["message"]


async def test_an_outage_is_repeated_and_no_token_dropped(door: Door) -> None:
    refusals = 0

    async def down_twice(request: web.Request) -> web.StreamResponse:
        nonlocal refusals
        refusals += 1
        if refusals == 2:
            door.between.fault = None
        return web.json_response({"error": "temporarily_unavailable"}, status=503, headers={"Retry-After": "1"})

    door.between.fault = down_twice
    result = await call(door, door.auth.fxa_token(), "not to be used")
    assert (result["text"], result["used"], result["requests"]) == ("Hello", 1, 3)


@pytest.mark.parametrize("stream", [False, True] if os.environ.get("MLPA_TEST_FULL") else [True])
async def test_it_reads_the_number_and_repeats_only_what_may_help(door: Door, stream: bool) -> None:
    token = door.auth.fxa_token()
    poor = await call(door, token, service_type="poor", stream=stream)
    assert (poor["error"]["status"], poor["error"]["code"], poor["requests"]) == (429, 1, 1)
    unknown = await call(door, token, model="unknown", stream=stream)
    assert (unknown["error"]["status"], unknown["error"]["code"], unknown["requests"]) == (400, 8, 1)
    too_long = error_body("ContextWindowExceededError: too long", "invalid_request_error", "400")
    door.double.script("gpt", Script.json(too_long, 400))
    long = await call(door, token, stream=stream)
    assert (long["error"]["status"], long["error"]["code"], long["requests"]) == (413, 3, 1)


async def test_an_error_in_a_stream_is_the_number(door: Door) -> None:
    limited = {"error": {"message": "slow", "type": "throttling_error", "param": None, "code": "429"}}
    door.double.script("gpt", Script.events([event(chunk("Hel")), event(limited)]))
    result = await call(door, door.auth.fxa_token(), stream=True)
    assert (result["error"]["code"], result["requests"]) == (5, 1)
