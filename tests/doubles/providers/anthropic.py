"""Anthropic's Messages API.

What it imitates, with the source. Files are in anthropics/anthropic-sdk-python, src/anthropic/types; pages
are of platform.claude.com/docs.

    request: max_tokens is needed, roles are user and      message_create_params.py, message_param.py
    assistant, ``system`` stands apart
    answer, reasons to stop, usage                         message.py, stop_reason.py, usage.py
    stream: start, ping, blocks and their deltas, usage    raw_message_stream_event.py, raw_content_block_delta.py,
                                                           page "Streaming Messages"
    400 unless results of tools follow their calls         page "Handle tool calls"
    400 for a changed thinking block                       page "Extended thinking", "Preserving thinking blocks"
    400, while thinking, for a call without its thinking   the same; karthink/gptel issue 743 has the message
    block
    400 for a budget below 1,024 or not below max_tokens   thinking_config_enabled_param.py
    400 for another temperature than 1 while thinking      page "Extended thinking", "Feature compatibility"
    400 for temperature and top_p together                 BerriAI/litellm issue 15097 has the message
    structured answers: output_config.format, or a tool    output_config_param.py, tool_choice_tool_param.py
    that has to be called
    error                                                  shared/error_response.py

Where it differs on purpose:

    - any key will do, and usage is constant
    - there is one signature, and a thinking block is genuine if it is the one that is always said
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from tests.doubles.providers import behaviour
from tests.doubles.providers.server import ProviderDouble, Refused, send_all

SIGNATURE = "EqoBCkgIARABGAIiQL2UoU0b1OHYi+/SIGNED+AND+SEALED=="


class AnthropicDouble(ProviderDouble):
    path = "/v1/messages"

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        _check(body)
        blocks, stop = _content(body)
        if body.get("stream"):
            return await send_all(request, _stream(body, blocks, stop), "text/event-stream")
        return web.json_response({**_head(body), "content": blocks, "stop_reason": stop, "usage": _usage()})

    def refusal(self, message: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": "invalid_request_error", "message": message}, "request_id": "req_1"}


def _thinking(body: dict[str, Any]) -> bool:
    return body.get("thinking", {}).get("type") in ("enabled", "adaptive")


def _check(body: dict[str, Any]) -> None:
    if "max_tokens" not in body:
        raise Refused("max_tokens: Field required")
    if "temperature" in body and "top_p" in body:
        raise Refused("`temperature` and `top_p` cannot both be specified for this model. Please use only one.")
    if body.get("tools") == [] and "tool_choice" in body:
        raise Refused("tool_choice: may only be specified while providing tools")
    if _thinking(body):
        budget = body["thinking"].get("budget_tokens")
        if budget is not None and not 1024 <= budget < body["max_tokens"]:
            raise Refused("`max_tokens` must be greater than `thinking.budget_tokens`, which is at least 1024.")
        if body.get("temperature", 1) != 1:
            raise Refused("`temperature` may only be set to 1 when thinking is enabled.")
    _check_history(body)


def _check_history(body: dict[str, Any]) -> None:
    messages = body["messages"]
    for number, message in enumerate(messages):
        if message["role"] not in ("user", "assistant"):
            raise Refused(f'messages.{number}: unexpected role "{message["role"]}"')
        blocks = _blocks(message)
        for block in blocks:
            if block["type"] == "thinking" and (block["thinking"], block["signature"]) != (
                behaviour.REASONING,
                SIGNATURE,
            ):
                raise Refused(f"messages.{number}.content.0: Invalid `signature` in `thinking` block")
        called = [block["id"] for block in blocks if block["type"] == "tool_use"]
        following = _blocks(messages[number + 1]) if number + 1 < len(messages) else []
        answered = {block["tool_use_id"] for block in following if block["type"] == "tool_result"}
        if set(called) - answered:
            raise Refused(
                f"messages.{number}: `tool_use` ids were found without `tool_result` blocks immediately after"
            )
        if called and _thinking(body) and blocks[0]["type"] not in ("thinking", "redacted_thinking"):
            raise Refused(f"messages.{number}.content.0.type: Expected `thinking`, but found `{blocks[0]['type']}`.")
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        before = {block.get("id") for block in _blocks(messages[number - 1])} if number else set()
        if set(results) - before:
            raise Refused(f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks")


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _content(body: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The blocks of the answer, and the reason to stop."""
    results = sum(block["type"] == "tool_result" for message in body["messages"] for block in _blocks(message))
    choice = body.get("tool_choice", {})
    demanded = choice.get("name") if choice.get("type") == "tool" else None
    turn = behaviour.next_turn(
        tools=bool(body.get("tools")) and demanded is None,
        results=results,
        schema="output_format" in body or "format" in body.get("output_config", {}),
        reasoning=_thinking(body),
    )
    blocks: list[dict[str, Any]] = []
    if turn.reasoning:
        blocks.append({"type": "thinking", "thinking": turn.reasoning, "signature": SIGNATURE})
    if demanded is not None:
        given = json.loads(behaviour.STRUCTURED)
        return [*blocks, {"type": "tool_use", "id": "toolu_d", "name": demanded, "input": given}], "tool_use"
    if turn.call is not None:
        given = json.loads(behaviour.CALLS[turn.call])
        block = {"type": "tool_use", "id": f"toolu_{turn.call}", "name": "get_weather", "input": given}
        return [*blocks, block], "tool_use"
    return [*blocks, {"type": "text", "text": turn.text}], "end_turn"


def _head(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "msg_provider", "type": "message", "role": "assistant", "model": body["model"], "stop_sequence": None}


def _usage() -> dict[str, Any]:
    return {
        "input_tokens": behaviour.PROMPT_TOKENS,
        "output_tokens": behaviour.COMPLETION_TOKENS,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "service_tier": "standard",
    }


async def _stream(body: dict[str, Any], blocks: list[dict[str, Any]], stop: str) -> AsyncIterator[bytes]:
    def event(name: str, **members: Any) -> bytes:
        return f"event: {name}\ndata: {json.dumps({'type': name, **members})}\n\n".encode()

    start = {**_head(body), "content": [], "stop_reason": None, "usage": {**_usage(), "output_tokens": 1}}
    yield event("message_start", message=start)
    yield event("ping")
    for index, block in enumerate(blocks):
        empty, deltas = _cut(block)
        yield event("content_block_start", index=index, content_block=empty)
        for delta in deltas:
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    usage = {"output_tokens": behaviour.COMPLETION_TOKENS}
    yield event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage=usage)
    yield event("message_stop")


def _cut(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it starts, and the deltas that fill it."""
    if block["type"] == "text":
        return {**block, "text": ""}, [
            {"type": "text_delta", "text": piece} for piece in behaviour.pieces(block["text"])
        ]
    if block["type"] == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in behaviour.pieces(block["thinking"])]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
        return {"type": "thinking", "thinking": "", "signature": ""}, deltas
    given = json.dumps(block["input"]) if block["input"] else ""
    return {**block, "input": {}}, [
        {"type": "input_json_delta", "partial_json": piece} for piece in behaviour.pieces(given)
    ]
