"""The official OpenAI clients, for Python and Node, through the real LiteLLM: what they send back reaches the provider.

The providers' doubles refuse what the providers refuse, so a call that lost its type or its signature on the way fails
the conversation; and what arrived with the last request is compared with what was said before.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients import node_client, python_flows
from tests.clients.conftest import BEDROCK, CLAUDE, DEEPSEEK, GEMINI3, GPT, GPT5, Providers, wait_for_models
from tests.doubles.providers import anthropic, behaviour, gemini
from tests.doubles.providers.server import ProviderDouble
from tests.system.clients import Caller
from tests.system.conftest import FULL
from tests.system.harness import System

Results = dict[str, dict[str, Any]]

#: Those of which the models are asked to reason.
THINKERS = (CLAUDE, BEDROCK, DEEPSEEK, GEMINI3)
JOBS = [
    *((flow, model) for flow in ("loop", "structured") for model in (GPT, GPT5, CLAUDE, GEMINI3, BEDROCK)),
    *(("streamed", model) for model in (GPT, CLAUDE, GEMINI3, BEDROCK)),
    *(("reasoning", model) for model in THINKERS),
]
#: What differs between the clients is for few models; what differs between the models is for either client.
NODE_JOBS = [job for job in JOBS if FULL or job[1] in (GPT, CLAUDE)] + [("runner", GPT), ("runner", CLAUDE)]


def tag(client: str, flow: str, model: str) -> str:
    """The text of a conversation's first message, by which it's known at the provider."""
    return f"The weather, please ({client} {flow} {model})"


def run_all(client: str, jobs: list[tuple[str, str]], run: Callable[[list[dict[str, str]]], Any]) -> Results:
    given = [{"flow": flow, "model": model, "tag": tag(client, flow, model)} for flow, model in jobs]
    return dict(zip((job["tag"] for job in given), run(given), strict=True))


async def an_account(system: System) -> str:
    async with Caller.open(system) as caller:
        _, token = await caller.account()
        await wait_for_models(caller, token)
        return token


@pytest.fixture(scope="module")
def results_of_python(system: System, all_providers: Providers) -> Results:
    token = asyncio.run(an_account(system))
    url = f"{system.gateway_url}/v1"
    return run_all("python", JOBS, lambda jobs: asyncio.run(python_flows.run(url, token, jobs)))


@pytest.fixture(scope="module")
def results_of_node(system: System, all_providers: Providers) -> Results:
    if why := node_client.missing():
        pytest.skip(why)
    token = asyncio.run(an_account(system))
    return run_all("node", NODE_JOBS, lambda jobs: node_client.run(f"{system.gateway_url}/v1", token, jobs))


@pytest.mark.parametrize(
    ("client", "flow", "model"), [*(("python", *job) for job in JOBS), *(("node", *job) for job in NODE_JOBS)]
)
def test_a_conversation_reaches_the_provider_as_it_was(
    request: pytest.FixtureRequest, all_providers: Providers, client: str, flow: str, model: str
) -> None:
    results: Results = request.getfixturevalue(f"results_of_{client}")
    result = results[tag(client, flow, model)]
    assert "failed" not in result, result["failed"]
    text = tag(client, flow, model)
    arrived = conversation(all_providers.of(model), text)
    if flow == "structured":
        assert result["answer"] == json.loads(behaviour.STRUCTURED)
        assert len(arrived) == 1
        return
    assert result["answer"] == behaviour.ANSWER
    thought = flow == "reasoning" or model == DEEPSEEK
    if thought:
        assert result["reasoning"] == behaviour.REASONING
    assert len(arrived) == len(behaviour.CALLS) + 1
    last = arrived[-1]
    if (client, flow, model) == ("python", "streamed", CLAUDE):
        last = without_placeholders(last)
    if (client, flow, model) == ("python", "streamed", GPT):
        last = without_indexes(last)
    if model == GEMINI3:
        last = without_ids(last)
    assert last == HISTORIES[model.partition("/")[0]](text, thought)


def conversation(provider: ProviderDouble, text: str) -> list[Any]:
    """The messages of each request of one conversation, as they arrived."""
    quoted = json.dumps(text)
    bodies = [one.body for one in provider.arrived if quoted in json.dumps(one.body)]
    return [body["contents"] if "contents" in body else body["messages"] for body in bodies]


def of_openai(text: str, thought: bool) -> Any:
    """``content: null`` of a message with calls is left out by LiteLLM, which means the same."""
    messages: list[Any] = [{"role": "user", "content": text}]
    for number, arguments in enumerate(behaviour.CALLS):
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        said = {"role": "assistant", "tool_calls": [call]}
        messages.append({**said, "reasoning_content": behaviour.REASONING} if thought else said)
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": result_of(arguments)})
    return messages


def of_anthropic(text: str, thought: bool) -> Any:
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    thinking = {"type": "thinking", "thinking": behaviour.REASONING, "signature": anthropic.SIGNATURE}
    for number, given in enumerate(map(json.loads, behaviour.CALLS)):
        use = {"type": "tool_use", "id": f"toolu_{number}", "name": "get_weather", "input": given}
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": result_of(json.dumps(given))}
        messages.append({"role": "assistant", "content": [thinking, use] if thought else [use]})
        messages.append({"role": "user", "content": [result]})
    return messages


def of_bedrock(text: str, thought: bool) -> Any:
    messages: list[Any] = [{"role": "user", "content": [{"text": text}]}]
    reasoning = {"reasoningText": {"text": behaviour.REASONING, "signature": anthropic.SIGNATURE}}
    for number, given in enumerate(map(json.loads, behaviour.CALLS)):
        use = {"toolUseId": f"tooluse_{number}", "name": "get_weather", "input": given}
        result = {"toolUseId": use["toolUseId"], "content": [{"text": result_of(json.dumps(given))}]}
        thinking = [{"reasoningContent": reasoning}] if thought else []
        messages.append({"role": "assistant", "content": [*thinking, {"toolUse": use}]})
        messages.append({"role": "user", "content": [{"toolResult": result}]})
    return messages


def of_gemini(text: str, thought: bool) -> Any:
    """LiteLLM numbers the calls itself; ``without_ids`` sees that calls and results have the same numbers."""
    contents: list[Any] = [{"role": "user", "parts": [{"text": text}]}]
    for given in map(json.loads, behaviour.CALLS):
        call = {"function_call": {"name": "get_weather", "args": given}, "thoughtSignature": gemini.SIGNATURE}
        thinking = [{"text": behaviour.REASONING, "thought": True}] if thought else []
        contents.append({"role": "model", "parts": [*thinking, call]})
        result = {"name": "get_weather", "response": {"content": result_of(json.dumps(given))}}
        contents.append({"role": "user", "parts": [{"function_response": result}]})
    return contents


def result_of(arguments: str) -> str:
    """What the applications answer a call with."""
    return f"rain {arguments}"


def without_placeholders(messages: Any) -> Any:
    """The SDK for Python makes ``content: ""`` of a stream without text, for which LiteLLM tells Anthropic a text."""
    placeholder = {"type": "text", "text": "[System: Empty message content sanitised to satisfy protocol]"}
    for message in messages:
        message["content"] = [block for block in message["content"] if block != placeholder]
    return messages


def without_indexes(messages: Any) -> Any:
    """The SDK for Python leaves the index of a chunk's call in the call."""
    for number, call in enumerate(call for message in messages for call in message.get("tool_calls", ())):
        assert call.pop("index") == 0, number
    return messages


def without_ids(contents: Any) -> Any:
    waiting = None
    for part in (part for content in contents for part in content["parts"]):
        if "function_call" in part:
            waiting = part["function_call"].pop("id")
        elif "function_response" in part:
            assert part["function_response"].pop("id") == waiting
    return contents


HISTORIES = {
    "openai": of_openai,
    "deepseek": of_openai,
    "anthropic": of_anthropic,
    "bedrock": of_bedrock,
    "gemini": of_gemini,
}
