"""The official OpenAI client, unmodified, with an access token for its key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from services.gateway.errors import BudgetExceeded, RateLimited, UserBlocked
from tests.doubles.litellm import DONE, Script, answer, chunk, error_body, event, stream_of
from tests.services.gateway.budget.support import BudgetReserved
from tests.services.gateway.conftest import TOKEN, Gateway

HI: Any = [{"role": "user", "content": "Hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


async def test_a_plain_answer(client: openai.AsyncOpenAI) -> None:
    got = await client.chat.completions.create(model="double", messages=HI)
    assert got.choices[0].message.content == "Hello"
    assert got.usage is not None
    assert got.usage.total_tokens == 15


async def test_a_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="double", messages=HI, stream=True)
    chunks = [part async for part in stream]
    assert "".join(part.choices[0].delta.content or "" for part in chunks) == "Hello"
    assert all(part.usage is None for part in chunks)


async def test_a_stream_with_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="double", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [part async for part in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


async def test_the_stream_helper_puts_tool_calls_together(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    def call(**fields: Any) -> bytes:
        return event(chunk(tool_calls=[{"index": 0, **fields}]))

    gateway.double.script(
        "double",
        Script.events(
            [
                event(chunk(role="assistant", content=None)),
                call(id="c1", type="function", function={"name": "weather", "arguments": ""}),
                call(function={"arguments": '{"city":'}),
                call(function={"arguments": '"Oslo"}'}),
                event(chunk(finish="tool_calls")),
                DONE,
            ]
        ),
    )
    async with client.chat.completions.stream(model="double", messages=HI, tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.arguments == '{"city":"Oslo"}'


async def test_a_tools_answer_can_be_sent_back_as_it_came(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    gateway.double.script(
        "double", Script.json(answer("", tool_calls=[call], annotations=[], provider_specific_fields={}))
    )
    first = await client.chat.completions.create(model="double", messages=HI, tools=TOOLS)
    gateway.double.scripts.clear()
    again: Any = [*HI, first.choices[0].message, {"role": "tool", "tool_call_id": "c1", "content": "rain"}]
    second = await client.chat.completions.create(model="double", messages=again, tools=TOOLS)
    assert second.choices[0].message.content == "Hello"


async def test_json_mode(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    gateway.double.script("double", Script.json(answer('{"a": 1}')))
    schema: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True}}
    got = await client.chat.completions.create(model="double", messages=HI, response_format=schema)
    assert got.choices[0].message.content == '{"a": 1}'
    assert gateway.double.asked[0].body["response_format"] == schema


async def test_the_synchronous_client_streams(gateway: Gateway) -> None:
    def use() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=TOKEN) as client:
            got = client.chat.completions.create(model="double", messages=HI)
            stream = client.chat.completions.create(model="double", messages=HI, stream=True)
            return got.choices[0].message.content, "".join(part.choices[0].delta.content or "" for part in stream)

    assert await asyncio.to_thread(use) == ("Hello", "Hello")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "kind", "code"),
    [
        (BudgetExceeded(retry_after=3600), openai.RateLimitError, "budget_exceeded"),
        (BudgetReserved(), openai.RateLimitError, "budget_reserved"),
        (RateLimited(retry_after=1), openai.RateLimitError, "rate_limit_exceeded"),
        (UserBlocked(), openai.PermissionDeniedError, "user_blocked"),
    ],
)
async def test_refusals_are_the_sdks_errors(
    gateway: Gateway, client: openai.AsyncOpenAI, stream: bool, refusal: Any, kind: type[Exception], code: str
) -> None:
    gateway.budgets.refuse = refusal
    with pytest.raises(kind) as caught:
        await client.chat.completions.create(model="double", messages=HI, stream=stream)  # type: ignore[call-overload]
    assert caught.value.code == code  # type: ignore[attr-defined]


async def test_a_spent_budget_is_not_asked_again(gateway: Gateway) -> None:
    gateway.budgets.refuse = BudgetExceeded(retry_after=60)
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=TOKEN, max_retries=3) as client:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="double", messages=HI)
    assert gateway.metric("chat_request_rejections_total", model="double", reason="budget_exceeded") == 1


async def test_a_wrong_token_is_an_authentication_error(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="bad", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="double", messages=HI)


async def test_an_upstream_failure_that_was_charged_is_not_retried(gateway: Gateway) -> None:
    gateway.double.script("double", Script([("cut", None)], content_type="application/json"))
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=TOKEN, max_retries=3) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="double", messages=HI)
    assert len(gateway.double.asked) == 1


async def test_an_error_in_mid_stream_is_raised_by_the_iteration(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    parts = [*stream_of(["a"])[:2], event(error_body("boom", None, "500"))]
    gateway.double.script("double", Script.events(parts))
    stream = await client.chat.completions.create(model="double", messages=HI, stream=True)
    await anext(stream)
    await anext(stream)
    with pytest.raises(openai.APIError) as caught:
        await anext(stream)
    assert caught.value.code == "upstream_error"


async def test_closing_a_stream_early_ends_the_upstream_request(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    gateway.double.script("double", Script([("send", event(chunk("a"))), ("hang", None)]))
    stream = await client.chat.completions.create(model="double", messages=HI, stream=True)
    async for _ in stream:
        break
    await stream.close()
    async with asyncio.timeout(2):
        await gateway.double.asked[0].ended.wait()
    assert gateway.double.asked[0].state == "gone"
