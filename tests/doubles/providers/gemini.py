"""Google's Gemini API: ``generateContent`` and ``streamGenerateContent``.

What it imitates, with the source. Pages are of ai.google.dev/gemini-api/docs.

    request: contents of the roles user and model,         googleapis/googleapis, google/ai/generativelanguage/v1beta:
    generationConfig, tools; answer: candidates, usage     generative_service.proto, content.proto
    names in camelCase or snake_case                       the JSON mapping of proto3 (protobuf.dev, "ProtoJSON")
    stream: each event a whole response, no ``[DONE]``     page "API reference", streamGenerateContent with alt=sse
    thoughtSignature beside a call; Gemini 3 refuses a     page "Thought signatures"; nanbingxyz/5ire issue 405 has
    call without it                                        the message
    400 unless results answer as many calls                page "Function calling"
    thoughts as parts, with includeThoughts                page "Thinking", "Thought summaries"
    error: code, message, status                           googleapis/googleapis, google/rpc/status.proto

Where it differs on purpose:

    - any key will do, and usage is constant
    - there is one signature
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from tests.doubles.providers import behaviour
from tests.doubles.providers.server import ProviderDouble, Refused, send_all

SIGNATURE = "CiQBjz1rXTHOUGHT+SIGNED=="


class GeminiDouble(ProviderDouble):
    base = "/v1beta"
    path = "/v1beta/models/{model}:{method}"

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        model = request.match_info["model"]
        _check(model, body)
        config = body.get("generationConfig", {})
        parts = [part for content in body["contents"] for part in content["parts"]]
        turn = behaviour.next_turn(
            tools=any(
                "functionDeclarations" in tool or "function_declarations" in tool for tool in body.get("tools", ())
            ),
            results=sum(_member(part, "functionResponse") is not None for part in parts),
            schema=any(_member(config, name) is not None for name in ("responseSchema", "responseJsonSchema")),
            reasoning=bool(config.get("thinkingConfig", {}).get("includeThoughts")),
        )
        if request.match_info["method"] == "streamGenerateContent":
            return await send_all(request, _stream(model, turn), "text/event-stream")
        return web.json_response(_response(model, turn, _parts(turn), "STOP"))

    def refusal(self, message: str) -> dict[str, Any]:
        return {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}


def _member(part: dict[str, Any], name: str) -> Any:
    """proto3's JSON takes both spellings of a name."""
    snake = "".join(f"_{char.lower()}" if char.isupper() else char for char in name)
    return part.get(name, part.get(snake))


def _check(model: str, body: dict[str, Any]) -> None:
    contents = body["contents"]
    for number, content in enumerate(contents):
        if content.get("role", "user") not in ("user", "model"):
            raise Refused("Please use a valid role: user, model.")
        calls = [part for part in content["parts"] if _member(part, "functionCall") is not None]
        following = contents[number + 1]["parts"] if number + 1 < len(contents) else []
        if len(calls) != sum(_member(part, "functionResponse") is not None for part in following):
            raise Refused("Please ensure that the number of function response parts is equal to the number of calls.")
        if calls and model.startswith("gemini-3") and _member(calls[0], "thoughtSignature") != SIGNATURE:
            raise Refused("Function call is missing a thought_signature in functionCall parts.")


def _parts(turn: behaviour.Turn) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if turn.reasoning:
        parts.append({"text": turn.reasoning, "thought": True})
    if turn.call is not None:
        call = {"name": "get_weather", "args": json.loads(behaviour.CALLS[turn.call])}
        parts.append({"functionCall": call, "thoughtSignature": SIGNATURE})
    else:
        parts.append({"text": turn.text})
    return parts


def _response(model: str, turn: behaviour.Turn, parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    usage = {
        "promptTokenCount": behaviour.PROMPT_TOKENS,
        "candidatesTokenCount": behaviour.COMPLETION_TOKENS,
        "totalTokenCount": behaviour.PROMPT_TOKENS + turn.completion_tokens,
    }
    if turn.reasoning:
        usage["thoughtsTokenCount"] = behaviour.REASONING_TOKENS
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model, "responseId": "provider"}


async def _stream(model: str, turn: behaviour.Turn) -> AsyncIterator[bytes]:
    parts = _parts(turn)
    for number, part in enumerate(parts):
        finish = "STOP" if number == len(parts) - 1 else None
        yield f"data: {json.dumps(_response(model, turn, [part], finish))}\r\n\r\n".encode()
