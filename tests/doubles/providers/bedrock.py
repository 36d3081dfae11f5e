"""Amazon Bedrock's Converse API.

What it imitates, with the source. Shapes are of boto/botocore, data/bedrock-runtime/2023-09-30/service-2.json.

    request and answer                                     ConverseRequest, ConverseResponse, TokenUsage
    stream: starts, deltas and stops of blocks, usage      ConverseStreamOutput
    its frames, application/vnd.amazon.eventstream         smithy.io, "Amazon Event Stream specification"
    reasoning with a signature; 400 for a call without it  ReasoningTextBlock; BerriAI/litellm, "Expected ``thinking``,
                                                           but found ``tool_use``" with Claude on Bedrock
    400 unless results match the calls before them         Bedrock User Guide, "Call a tool with the Converse API"

Where it differs on purpose:

    - the AWS signature of a request is not checked, and usage is constant
    - what Claude refuses of temperature and top_p together is left to Anthropic's double
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from tests.doubles.providers import behaviour
from tests.doubles.providers.anthropic import SIGNATURE
from tests.doubles.providers.server import ProviderDouble, Refused, send_all


class BedrockDouble(ProviderDouble):
    path = "/model/{model}/{method:converse|converse-stream}"

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        _check(body)
        blocks, stop = _content(body)
        if request.match_info["method"] == "converse-stream":
            return await send_all(request, _stream(blocks, stop), "application/vnd.amazon.eventstream")
        output = {"message": {"role": "assistant", "content": blocks}}
        return web.json_response({"output": output, "stopReason": stop, "usage": _usage(), "metrics": {"latencyMs": 9}})

    def refusal(self, message: str) -> dict[str, Any]:
        return {"message": message}


def _thinking(body: dict[str, Any]) -> bool:
    fields = body.get("additionalModelRequestFields", {})
    return fields.get("thinking", {}).get("type") in ("enabled", "adaptive")


def _check(body: dict[str, Any]) -> None:
    messages = body["messages"]
    for number, message in enumerate(messages):
        called = {block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block}
        following = messages[number + 1]["content"] if number + 1 < len(messages) else []
        answered = {block["toolResult"]["toolUseId"] for block in following if "toolResult" in block}
        if called != answered:
            raise Refused(f"The toolUse blocks at messages.{number} and the toolResult blocks after it do not match.")
        if called and _thinking(body):
            first = message["content"][0].get("reasoningContent", {}).get("reasoningText", {})
            if (first.get("text"), first.get("signature")) != (behaviour.REASONING, SIGNATURE):
                raise Refused(f"messages.{number}.content.0.type: Expected `thinking`, but found `tool_use`.")
    if not messages or messages[0]["role"] != "user":
        raise Refused("A conversation must start with a user message.")


def _content(body: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    config = body.get("toolConfig", {})
    demanded = config.get("toolChoice", {}).get("tool", {}).get("name")
    fields = body.get("additionalModelRequestFields", {})
    turn = behaviour.next_turn(
        tools=bool(config.get("tools")) and demanded is None,
        results=sum("toolResult" in block for message in body["messages"] for block in message["content"]),
        schema="outputConfig" in body or "output_format" in fields,
        reasoning=_thinking(body),
    )
    blocks: list[dict[str, Any]] = []
    if turn.reasoning:
        blocks.append({"reasoningContent": {"reasoningText": {"text": turn.reasoning, "signature": SIGNATURE}}})
    if demanded is not None:
        use = {"toolUseId": "tooluse_d", "name": demanded, "input": json.loads(behaviour.STRUCTURED)}
        return [*blocks, {"toolUse": use}], "tool_use"
    if turn.call is not None:
        given = json.loads(behaviour.CALLS[turn.call])
        use = {"toolUseId": f"tooluse_{turn.call}", "name": "get_weather", "input": given}
        return [*blocks, {"toolUse": use}], "tool_use"
    return [*blocks, {"text": turn.text}], "end_turn"


def _usage() -> dict[str, int]:
    total = behaviour.PROMPT_TOKENS + behaviour.COMPLETION_TOKENS
    return {"inputTokens": behaviour.PROMPT_TOKENS, "outputTokens": behaviour.COMPLETION_TOKENS, "totalTokens": total}


async def _stream(blocks: list[dict[str, Any]], stop: str) -> AsyncIterator[bytes]:
    yield frame("messageStart", {"role": "assistant"})
    for index, block in enumerate(blocks):
        if "toolUse" in block:
            use = block["toolUse"]
            start = {"toolUse": {"toolUseId": use["toolUseId"], "name": use["name"]}}
            yield frame("contentBlockStart", {"contentBlockIndex": index, "start": start})
        for delta in _deltas(block):
            yield frame("contentBlockDelta", {"contentBlockIndex": index, "delta": delta})
        yield frame("contentBlockStop", {"contentBlockIndex": index})
    yield frame("messageStop", {"stopReason": stop})
    yield frame("metadata", {"usage": _usage(), "metrics": {"latencyMs": 9}})


def _deltas(block: dict[str, Any]) -> list[dict[str, Any]]:
    if "text" in block:
        return [{"text": piece} for piece in behaviour.pieces(block["text"])]
    if "reasoningContent" in block:
        thought = block["reasoningContent"]["reasoningText"]
        deltas = [{"reasoningContent": {"text": piece}} for piece in behaviour.pieces(thought["text"])]
        return [*deltas, {"reasoningContent": {"signature": thought["signature"]}}]
    given = json.dumps(block["toolUse"]["input"])
    return [{"toolUse": {"input": piece}} for piece in behaviour.pieces(given)]


def frame(kind: str, body: dict[str, Any]) -> bytes:
    """A message of an event stream: lengths and their CRC, headers, payload, CRC of it all."""
    headers = b"".join(
        bytes([len(name)]) + name + b"\x07" + struct.pack(">H", len(value)) + value
        for name, value in (
            (b":event-type", kind.encode()),
            (b":content-type", b"application/json"),
            (b":message-type", b"event"),
        )
    )
    payload = json.dumps(body).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))
