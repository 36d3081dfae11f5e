"""The requests that arrive at each provider for each forwarded parameter.

Between the gateway and the provider is the real LiteLLM with the shipped settings: it translates a parameter into the
provider's own, or leaves out what the provider does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
import yaml

from services.gateway.chat.operation import CHAT
from tests.clients.conftest import BEDROCK, CLAUDE, DEEPSEEK, GEMINI, GPT, GPT5, MODELS, NOVA, SHIPPED, Providers
from tests.system.clients import Caller

SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
CHOICE: Any = {"type": "function", "function": {"name": "get_weather"}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}

OF_ANTHROPIC: Any = [{"name": "get_weather", "input_schema": PARAMETERS, "type": "custom"}]
OF_GEMINI: Any = [{"function_declarations": [{"name": "get_weather", "parameters": PARAMETERS}]}]
OF_BEDROCK: Any = [
    {
        "toolSpec": {
            "name": "get_weather",
            "description": "get_weather",
            "inputSchema": {"json": {**PARAMETERS, "required": []}},
        }
    }
]
#: Nova gets a schema as a tool that it has to call.
JSON_TOOL: Any = {
    "tools": [
        {
            "toolSpec": {
                "name": "json_tool_call",
                "description": "json_tool_call",
                "inputSchema": {"json": {key: SCHEMA[key] for key in ("type", "properties", "required")}},
            }
        }
    ],
    "toolChoice": {"tool": {"name": "json_tool_call"}},
}

#: The parameter arrives as it was given.
SAME = object()
NOTHING: dict[str, Any] = {}
Expected = Any


def each(models: Iterable[str], expected: Expected) -> dict[str, Expected]:
    return dict.fromkeys(models, expected)


#: Of these providers, those that take OpenAI's own parameters.
COMPATIBLE = (GPT, DEEPSEEK)

#: ``(what the client gives, {model: what differs then in the provider's request})``; a model that is not named gets
#: nothing of it. A member of a nested configuration is named with a dot.
TABLE: dict[str, tuple[dict[str, Any], dict[str, Expected]]] = {
    "temperature": (
        {"temperature": 0.5},
        {
            **each((*COMPATIBLE, CLAUDE), SAME),
            GEMINI: {"generationConfig.temperature": 0.5},
            BEDROCK: {"inferenceConfig.temperature": 0.5},
            NOVA: {"inferenceConfig.temperature": 0.5},
        },
    ),
    "top_p": (
        {"top_p": 0.9},
        {
            **each((*COMPATIBLE, CLAUDE), SAME),
            GEMINI: {"generationConfig.top_p": 0.9},
            BEDROCK: {"inferenceConfig.topP": 0.9},
            NOVA: {"inferenceConfig.topP": 0.9},
        },
    ),
    "n": ({"n": 2}, {**each((*COMPATIBLE, GPT5), SAME), GEMINI: {"generationConfig.candidate_count": 2}}),
    "stop": (
        {"stop": ["END"]},
        {
            **each(COMPATIBLE, SAME),
            CLAUDE: {"stop_sequences": ["END"]},
            GEMINI: {"generationConfig.stop_sequences": ["END"]},
            BEDROCK: {"inferenceConfig.stopSequences": ["END"]},
            NOVA: {"inferenceConfig.stopSequences": ["END"]},
        },
    ),
    **{
        name: (
            {name: 2000},
            {
                **each((*COMPATIBLE, CLAUDE), {"max_tokens": 2000}),
                GPT5: {"max_completion_tokens": 2000},
                GEMINI: {"generationConfig.max_output_tokens": 2000},
                BEDROCK: {"inferenceConfig.maxTokens": 2000},
                NOVA: {"inferenceConfig.maxTokens": 2000},
            },
        )
        for name in ("max_tokens", "max_completion_tokens")
    },
    **{
        name: ({name: 0.5}, {**each(COMPATIBLE, SAME), GEMINI: {f"generationConfig.{name}": 0.5}})
        for name in ("presence_penalty", "frequency_penalty")
    },
    "logit_bias": ({"logit_bias": {"50256": -100}}, each(COMPATIBLE, SAME)),
    "logprobs": ({"logprobs": True}, {**each(COMPATIBLE, SAME), GEMINI: {"generationConfig.responseLogprobs": True}}),
    # The number doesn't reach Gemini: LiteLLM looks for it in another place
    "top_logprobs": (
        {"logprobs": True, "top_logprobs": 2},
        {**each(COMPATIBLE, SAME), GEMINI: {"generationConfig.responseLogprobs": True}},
    ),
    "response_format": (
        {"response_format": FORMAT},
        {
            **each((*COMPATIBLE, GPT5), SAME),
            CLAUDE: {"output_format": {"type": "json_schema", "schema": SCHEMA}},
            GEMINI: {
                "generationConfig.response_mime_type": "application/json",
                "generationConfig.response_json_schema": SCHEMA,
            },
            BEDROCK: {
                "outputConfig": {
                    "textFormat": {
                        "type": "json_schema",
                        "structure": {"jsonSchema": {"name": "weather", "schema": json.dumps(SCHEMA)}},
                    }
                }
            },
            NOVA: {"toolConfig": JSON_TOOL},
        },
    ),
    "seed": ({"seed": 7}, {**each((*COMPATIBLE, GPT5), SAME), GEMINI: {"generationConfig.seed": 7}}),
    "tools": (
        {"tools": TOOLS},
        {
            **each((*COMPATIBLE, GPT5), SAME),
            CLAUDE: {"tools": OF_ANTHROPIC},
            GEMINI: {"tools": OF_GEMINI},
            **each((BEDROCK, NOVA), {"toolConfig": {"tools": OF_BEDROCK}}),
        },
    ),
    "no tools": ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
    "tool_choice": (
        {"tools": TOOLS, "tool_choice": CHOICE},
        {
            **each((*COMPATIBLE, GPT5), SAME),
            CLAUDE: {"tools": OF_ANTHROPIC, "tool_choice": {"type": "tool", "name": "get_weather"}},
            GEMINI: {
                "tools": OF_GEMINI,
                "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowed_function_names": ["get_weather"]}},
            },
            **each(
                (BEDROCK, NOVA), {"toolConfig": {"tools": OF_BEDROCK, "toolChoice": {"tool": {"name": "get_weather"}}}}
            ),
        },
    ),
    "parallel_tool_calls": (
        {"tools": TOOLS, "parallel_tool_calls": False},
        {
            **each((*COMPATIBLE, GPT5), SAME),
            CLAUDE: {"tools": OF_ANTHROPIC, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            GEMINI: {"tools": OF_GEMINI},
            BEDROCK: {
                "toolConfig": {"tools": OF_BEDROCK},
                "additionalModelRequestFields.tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            },
            NOVA: {"toolConfig": {"tools": OF_BEDROCK}},
        },
    ),
    "reasoning_effort": (
        {"reasoning_effort": "low"},
        {
            GPT5: SAME,
            DEEPSEEK: {"thinking": {"type": "enabled"}},
            CLAUDE: {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            GEMINI: {"generationConfig.thinkingConfig": {"thinkingBudget": 1024, "includeThoughts": True}},
            BEDROCK: {
                "additionalModelRequestFields.thinking": {"type": "enabled", "budget_tokens": 1024},
                "additionalModelResponseFieldPaths": ["/usage/output_tokens_details"],
            },
        },
    ),
    # Usage is asked for by the gateway
    **{
        name: (
            {"stream": True, **given},
            {
                **each((*COMPATIBLE, GPT5), {"stream": True, "stream_options": {"include_usage": True}}),
                CLAUDE: {"stream": True},
            },
        )
        for name, given in (("stream", {}), ("stream_options", {"stream_options": {"include_usage": True}}))
    },
}

#: The request of a client that says nothing but "Hi".
PLAIN: dict[str, dict[str, Any]] = {
    GPT: {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8192},
    GPT5: {"model": "gpt-5", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 8192},
    DEEPSEEK: {
        "model": "deepseek-reasoner",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 8192,
        "stream": False,
    },
    CLAUDE: {
        "model": "claude-sonnet-4-5",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "max_tokens": 8192,
    },
    GEMINI: {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}], "generationConfig.max_output_tokens": 8192},
    **each(
        (BEDROCK, NOVA),
        {"messages": [{"role": "user", "content": [{"text": "Hi"}]}], "inferenceConfig.maxTokens": 8192},
    ),
}
NESTED = ("generationConfig", "inferenceConfig", "additionalModelRequestFields")


def test_every_parameter_of_the_document_is_in_the_table() -> None:
    assert CHAT.route.body is not None
    assert CHAT.route.body.schema["properties"].keys() <= {*TABLE, "model", "messages"}


async def arriving(caller: Caller, token: str, providers: Providers, model: str, **given: Any) -> dict[str, Any]:
    """The provider's request for a client's, its nested configurations laid flat."""
    providers.forget()
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **given}
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{caller.system.gateway_url}/v1/chat/completions"
    seen = await caller.ask("POST", url, json=body, headers=headers, patience=60)
    assert seen.status == 200, (model, given, seen.body)
    (arrived,) = providers.of(model).arrived
    flat = dict(arrived.body)
    for name in NESTED:
        flat |= {f"{name}.{key}": value for key, value in flat.pop(name, {}).items()}
    return flat


@pytest.mark.parametrize("model", PLAIN)
async def test_a_plain_request(caller: Caller, token: str, providers: Providers, model: str) -> None:
    assert await arriving(caller, token, providers, model) == PLAIN[model]


@pytest.mark.parametrize("parameter", TABLE)
async def test_a_parameter(caller: Caller, token: str, providers: Providers, parameter: str) -> None:
    given, expected = TABLE[parameter]
    arrived = {model: await arriving(caller, token, providers, model, **given) for model in PLAIN}
    differing = {
        model: {name: value for name, value in body.items() if PLAIN[model].get(name) != value}
        for model, body in arrived.items()
    }
    assert differing == {
        model: given if expected.get(model) is SAME else expected.get(model, NOTHING) for model in PLAIN
    }


async def test_no_provider_learns_who_the_user_is(caller: Caller, providers: Providers) -> None:
    """The user's id is for LiteLLM alone."""
    user, token = await caller.account()
    identity = user.partition(":")[0]
    for model in MODELS:
        await arriving(caller, token, providers, model)
        (arrived,) = providers.of(model).arrived
        assert identity not in json.dumps([arrived.body, dict(arrived.headers), arrived.path]), model


def test_every_shipped_model_that_has_a_provider_keeps_the_user_from_it() -> None:
    models = yaml.safe_load(SHIPPED.read_text())["model_list"]
    asking = [model for model in models if "mock_response" not in model["litellm_params"]]
    assert asking
    for model in asking:
        assert model["litellm_params"]["additional_drop_params"] == ["user"], model["model_name"]
