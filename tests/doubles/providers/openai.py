"""OpenAI's embeddings and chat completions, and DeepSeek's, which are the same but for ``reasoning_content``.

What it imitates, with the source. Names alone are schemas of openai/openai-openapi, openapi.yaml.

    an answer, its null members and its usage in detail    CreateChatCompletionResponse, CompletionUsage,
                                                           ChatCompletionResponseMessage
    a stream: the role, then text, or a call's id, type    CreateChatCompletionStreamResponse,
    and name and then its arguments in pieces; with        ChatCompletionMessageToolCallChunk,
    include_usage a last chunk without choices, and        ChatCompletionStreamOptions
    ``usage: null`` before it; ``[DONE]``
    400 for a call in the history without its id, type,    ChatCompletionMessageToolCall (``required``)
    name or arguments
    400 for calls that no message of a tool answers        langchain-ai/langchain issues, "An assistant message with
                                                           'tool_calls' must be followed by tool messages"
    400 for ``tools: []``                                  scottleibrand/slackAskBot pull request 9 ("[] is too short"),
                                                           vllm-project/vllm pull request 39780
    400 for tool_choice and parallel_tool_calls alone      vllm-project/vllm pull request 21052; the message is OpenAI's
    400 for max_tokens of models that reason               CreateChatCompletionRequest, max_tokens ("not compatible
                                                           with o-series models")
    400 for a temperature, top_p, penalty or logit_bias    OpenAI, guide "Latest model", GPT-5 parameter compatibility
    of models that reason
    embeddings: floats or base64 of little-endian          CreateEmbeddingRequest, CreateEmbeddingResponse;
    float32; 400 for an empty text                         openai/openai-python, resources/embeddings.py
    error: message, type, param, code                      ErrorResponse
    DeepSeek: reasoning_content, in deltas too; 400        api-docs.deepseek.com/guides/thinking_mode, "Tool calls";
    unless calls come back with it, an empty one included  deepseek-ai/deepseek-harness discussions 739 and 1850

Where it differs on purpose:

    - any key and any model's name will do; the beginning of the name says how the model behaves
    - ``n`` choices all say the same, and usage is constant
    - what it doesn't know of a request is not refused
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from tests.doubles.providers import behaviour
from tests.doubles.providers.server import ProviderDouble, Refused, send_all

REASONING_MODELS = ("gpt-5", "o1", "o3", "o4")
NOT_OF_REASONING_MODELS = ("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias")

EMBEDDINGS = "/v1/embeddings"
VECTOR = [0.25, -0.5, 0.0, 1.0]


class OpenAIDouble(ProviderDouble):
    base = "/v1"
    path = "/v1/chat/completions"
    more_paths = (EMBEDDINGS,)

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if request.path == EMBEDDINGS:
            return web.json_response(_embeddings(body))
        _check(body)
        turn = behaviour.next_turn(
            tools="tools" in body,
            results=sum(message["role"] == "tool" for message in body["messages"]),
            schema=body.get("response_format", {}).get("type") == "json_schema",
            reasoning=_thinks_aloud(body),
        )
        if body.get("stream"):
            return await send_all(request, _stream(body, turn), "text/event-stream")
        choices = [
            {"index": index, "message": _message(turn), "logprobs": None, "finish_reason": _finish(turn)}
            for index in range(body.get("n") or 1)
        ]
        return web.json_response(
            {**_head(body, "chat.completion"), "choices": choices, "usage": _usage(turn), "service_tier": "default"}
        )

    def refusal(self, message: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def _check(body: dict[str, Any]) -> None:
    if body.get("tools") == []:
        raise Refused("Invalid 'tools': empty array. Expected an array with minimum length 1.")
    for name in ("tool_choice", "parallel_tool_calls"):
        if name in body and "tools" not in body:
            raise Refused(f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified.")
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise Refused("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
    if len(body.get("user", "")) > 64:
        raise Refused("Invalid 'user': string too long. Expected a string with maximum length 64.")
    if body["model"].startswith(REASONING_MODELS):
        for name in NOT_OF_REASONING_MODELS:
            if name in body and (name, body[name]) != ("temperature", 1):
                raise Refused(f"Unsupported parameter: '{name}' is not supported with this model.")
    elif "reasoning_effort" in body and not _is_deepseek(body):
        raise Refused("Unrecognized request argument supplied: reasoning_effort")
    _check_history(body)


def _check_history(body: dict[str, Any]) -> None:
    waiting: set[str] = set()
    for number, message in enumerate(body["messages"]):
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                raise Refused("messages with role 'tool' must be a response to a preceeding message with 'tool_calls'.")
            waiting.discard(message["tool_call_id"])
            continue
        if waiting:
            raise Refused("An assistant message with 'tool_calls' must be followed by tool messages.")
        for position, call in enumerate(message.get("tool_calls") or ()):
            where = f"messages[{number}].tool_calls[{position}]"
            for name in ("id", "type", "function"):
                if name not in call:
                    raise Refused(f"Missing required parameter: '{where}.{name}'.")
            for name in ("name", "arguments"):
                if name not in call["function"]:
                    raise Refused(f"Missing required parameter: '{where}.function.{name}'.")
            waiting.add(call["id"])
        if message.get("tool_calls") and _thinks_aloud(body) and not message.get("reasoning_content"):
            raise Refused(f"Missing `reasoning_content` field in the assistant message at message index {number}.")


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    given = body["input"]
    if len(body.get("user", "")) > 64:
        raise Refused("Invalid 'user': string too long. Expected a string with maximum length 64.")
    if given in ("", []) or (isinstance(given, list) and "" in given):
        raise Refused(
            "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."
        )
    items = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1
    vector: Any = VECTOR
    if body.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
    tokens = items * behaviour.PROMPT_TOKENS
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index in range(items)],
        "model": body["model"],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _is_deepseek(body: dict[str, Any]) -> bool:
    return bool(body["model"].startswith("deepseek"))


def _thinks_aloud(body: dict[str, Any]) -> bool:
    thinking = body.get("thinking", {}).get("type") == "enabled" or "reasoning_effort" in body
    return _is_deepseek(body) and (thinking or body["model"] == "deepseek-reasoner")


def _message(turn: behaviour.Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.text, "refusal": None, "annotations": []}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.call is not None:
        message["tool_calls"] = [_call(turn.call)]
    return message


def _call(number: int) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": behaviour.CALLS[number]}
    return {"id": f"call_{number}", "type": "function", "function": function}


def _finish(turn: behaviour.Turn) -> str:
    return "stop" if turn.call is None else "tool_calls"


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-provider",
        "object": kind,
        "created": 1760000000,
        "model": f"{body['model']}-2025-01-01",
        "system_fingerprint": "fp_0123456789",
    }


def _usage(turn: behaviour.Turn) -> dict[str, Any]:
    return {
        "prompt_tokens": behaviour.PROMPT_TOKENS,
        "completion_tokens": turn.completion_tokens,
        "total_tokens": behaviour.PROMPT_TOKENS + turn.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": behaviour.REASONING_TOKENS if turn.reasoning else 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def _stream(body: dict[str, Any], turn: behaviour.Turn) -> AsyncIterator[bytes]:
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))

    def event(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        given = {**_head(body, "chat.completion.chunk"), "service_tier": "default", "choices": choices}
        if with_usage:
            given["usage"] = usage
        return b"data: " + json.dumps(given, separators=(",", ":")).encode() + b"\n\n"

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        indexes = range(body.get("n") or 1)
        return event([{"index": at, "delta": delta, "logprobs": None, "finish_reason": finish} for at in indexes])

    yield chunk({"role": "assistant", "content": None if turn.call is not None else "", "refusal": None})
    for piece in behaviour.pieces(turn.reasoning) if turn.reasoning else ():
        yield chunk({"reasoning_content": piece})
    if turn.call is not None:
        call = _call(turn.call)
        arguments = call["function"]["arguments"]
        call["function"]["arguments"] = ""
        yield chunk({"tool_calls": [{"index": 0, **call}]})
        for piece in behaviour.pieces(arguments):
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    for piece in behaviour.pieces(turn.text) if turn.text else ():
        yield chunk({"content": piece})
    yield chunk({}, _finish(turn))
    if with_usage:
        yield event([], _usage(turn))
    yield b"data: [DONE]\n\n"
