"""Flows of applications with OpenAI's SDK, as its README shows them; node/flows.mjs does the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import openai
from pydantic import BaseModel

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "array"}}},
    },
}
LIMIT = 3000


class Weather(BaseModel):
    city: str
    celsius: float


class Flows:
    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client.chat.completions

    async def loop(self, model: str, tag: str) -> dict[str, Any]:
        return await self._tool_loop(model, tag, self._plain)

    async def reasoning(self, model: str, tag: str) -> dict[str, Any]:
        return await self._tool_loop(model, tag, lambda **body: self._plain(**body, reasoning_effort="low"))

    async def streamed(self, model: str, tag: str) -> dict[str, Any]:
        return await self._tool_loop(model, tag, self._by_stream)

    async def structured(self, model: str, tag: str) -> dict[str, Any]:
        messages: Any = [{"role": "user", "content": tag}]
        completion = await self._client.parse(
            model=model, messages=messages, response_format=Weather, max_completion_tokens=LIMIT
        )
        parsed = completion.choices[0].message.parsed
        return {"answer": parsed and parsed.model_dump(), "reasoning": None}

    async def _tool_loop(self, model: str, tag: str, ask: Callable[..., Awaitable[Any]]) -> dict[str, Any]:
        messages: list[Any] = [{"role": "user", "content": tag}]
        while True:
            message = await ask(model=model, messages=messages, tools=[TOOL], max_completion_tokens=LIMIT)
            messages.append(message)
            if not message.tool_calls:
                return {"answer": message.content, "reasoning": getattr(message, "reasoning_content", None)}
            for call in message.tool_calls:
                result = {"role": "tool", "tool_call_id": call.id, "content": f"rain {call.function.arguments}"}
                messages.append(result)

    async def _plain(self, **body: Any) -> Any:
        return (await self._client.create(**body)).choices[0].message

    async def _by_stream(self, **body: Any) -> Any:
        async with self._client.stream(**body) as stream:
            return (await stream.get_final_completion()).choices[0].message


async def run(url: str, token: str, jobs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The results of jobs ``{flow, model, tag}``; a failed one is ``{"failed": ...}``."""
    async with openai.AsyncOpenAI(base_url=url, api_key=token, max_retries=0) as client:
        flows = Flows(client)

        async def one(job: dict[str, str]) -> dict[str, Any]:
            try:
                result: dict[str, Any] = await getattr(flows, job["flow"])(job["model"], job["tag"])
            except Exception as error:
                return {"failed": f"{type(error).__name__}: {error}"}
            return result

        return list(await asyncio.gather(*(one(job) for job in jobs)))
