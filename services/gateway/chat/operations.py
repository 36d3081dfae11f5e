"""POST /v1/chat/completions, as the API documents it."""

from __future__ import annotations

from typing import Any

from services.gateway.chat.request import MAX_CHOICES
from services.gateway.chat.views import chat_completions
from services.gateway.openapi import ErrorBody
from shared.domain.service_types import MAX_MODEL_NAME
from shared.telemetry.openapi import Answer, Body, Operation, Parameter

_RATES = [f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")]

_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["model", "messages"],
    "description": "Other parameters are dropped silently.",
    "properties": {
        "model": {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_NAME},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                    "content": {
                        "description": "Text, or parts: `text`, or `image_url` as a `data:` URL.",
                        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}],
                    },
                },
            },
        },
        "stream": {"type": "boolean", "default": False},
        "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES},
        "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 16}]},
        "max_tokens": {"type": "integer", "minimum": 1, "deprecated": True},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
        "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
        "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
        "logprobs": {"type": "boolean"},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
        "response_format": {"type": "object"},
        "seed": {"type": "integer"},
        "tools": {"type": "array", "items": {"type": "object"}},
        "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]},
        "parallel_tool_calls": {"type": "boolean"},
        "reasoning_effort": {"type": "string"},
    },
}

_EXAMPLE = {
    "model": "openai/gpt-4o",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_completion_tokens": 100,
}
_EVENTS = {"type": "string", "description": "Each event is `data: ` and a chunk as JSON; the last is `data: [DONE]`."}

OPERATIONS = [
    Operation(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        "Chat completions, streaming and not",
        {
            200: Answer(
                "OpenAI's completion object; with `stream: true` server-sent events of completion chunks. A limit that "
                "the budget lowered shows as `x-mlpa-max-completion-tokens`.",
                {"type": "object"},
                headers=[*_RATES, "x-mlpa-max-completion-tokens"],
                also={"text/event-stream": _EVENTS},
            ),
            400: Answer("`invalid_request` (`param` names the field) or `invalid_model`", ErrorBody),
            401: Answer("`invalid_token`", ErrorBody, headers=["WWW-Authenticate"]),
            403: Answer("`user_blocked`", ErrorBody),
            413: Answer("`request_too_large`: the body, or the prompt for the model", ErrorBody),
            429: Answer(
                "`budget_exceeded`, `budget_reserved`, `rate_limit_exceeded` or `upstream_rate_limited`",
                ErrorBody,
                headers=["Retry-After", "x-should-retry", *_RATES],
            ),
            502: Answer("`upstream_error`", ErrorBody, headers=["x-should-retry"]),
            503: Answer("`unavailable`", ErrorBody, headers=["Retry-After"]),
            504: Answer("`upstream_timeout`", ErrorBody),
        },
        tag="OpenAI",
        parameters=[Parameter("purpose", "What the request is for: a label of the metrics.", where="header")],
        body=Body(_REQUEST, _EXAMPLE),
        security="access_token",
    )
]
