"""Request bodies: refusals with the field at fault, and the parts that are forwarded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.chat.request import ChatRequest, parse
from services.gateway.errors import GatewayError
from services.gateway.relay.prompt import Prompt
from tests.services.gateway.conftest import Gateway, Model, RawClient, request_body

IMAGE_HOSTS = frozenset({"img.example"})
LIMIT = "max_completion_tokens"
PNG = "data:image/png;base64,AAAA"


def parsed(**changes: Any) -> ChatRequest:
    return parse(json.dumps(request_body(**changes)).encode(), IMAGE_HOSTS)


def part(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [fields]}]


def image(url: str) -> list[dict[str, Any]]:
    return part(type="image_url", image_url={"url": url})


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

REFUSED: list[tuple[Any, str, str | None]] = [
    (b"", "invalid_request", None),
    (b"nonsense", "invalid_request", None),
    (b"[]", "invalid_request", None),
    (b'{"model":"m","messages":[]} x', "invalid_request", None),
    (b"\xff\xfe{}", "invalid_request", None),
    (b'{"model":"m","messages":[{"role":"user","content":NaN}]}', "invalid_request", None),
    (b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', "invalid_request", "messages"),
    (b'{"model":"m","messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "invalid_request", None),
    (b'{"model":"m","x":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}", "invalid_request", None),
    (b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":1e999}', "invalid_request", "temperature"),
    (b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":' + b"9" * 5000 + b"}", "invalid_request", "n"),
    ({"messages": ...}, "invalid_request", "messages"),
    ({"messages": []}, "invalid_request", "messages"),
    ({"messages": None}, "invalid_request", "messages"),
    ({"messages": "Hi"}, "invalid_request", "messages"),
    ({"messages": [{"content": "x"}]}, "invalid_request", "messages[0].role"),
    ({"messages": [{"role": "evil", "content": "x"}]}, "invalid_request", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "invalid_request", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_request", "messages[0].content"),
    ({"messages": part(type="input_audio")}, "invalid_request", "messages[0].content[0].type"),
    ({"messages": part(type="file", file={})}, "invalid_request", "messages[0].content[0].type"),
    ({"messages": part(type="text")}, "invalid_request", "messages[0].content[0].text"),
    ({"messages": part(type="text", text="a", image_url="b")}, "invalid_request", "messages[0].content[0].text"),
    ({"messages": image("http://img.example/a")}, "invalid_request", "messages[0].content[0].image_url.url"),
    ({"messages": image("https://evil.example/a")}, "invalid_request", "messages[0].content[0].image_url.url"),
    ({"messages": image("https://img.example:1/a")}, "invalid_request", "messages[0].content[0].image_url.url"),
    ({"messages": image("https://a@img.example/a")}, "invalid_request", "messages[0].content[0].image_url.url"),
    ({"messages": image("https://img.example\\@evil/")}, "invalid_request", "messages[0].content[0].image_url.url"),
    *(
        ({"messages": image(url)}, "invalid_request", "messages[0].content[0].image_url.url")
        for url in (
            "data:text/html;base64,AA==",
            "data:image/png;base64,",
            "data:image/png;base64,gs://bucket/secret",
            "data:image/png;name=x;base64,AA==",
            "data:image/png;base64,A-_A",
        )
    ),
    ({"model": ...}, "invalid_model", "model"),
    ({"model": 5}, "invalid_model", "model"),
    ({"model": "a b"}, "invalid_model", "model"),
    ({"model": "m\n"}, "invalid_model", "model"),
    ({"model": "x" * 257}, "invalid_model", "model"),
    ({"model": ""}, "invalid_model", "model"),
    ({"model": None}, "invalid_model", "model"),
    ({"model": "a\u00a0b"}, "invalid_model", "model"),
    ({"model": "a\u202eb"}, "invalid_model", "model"),
    ({"n": 9}, "invalid_request", "n"),
    ({"n": 0}, "invalid_request", "n"),
    ({"n": True}, "invalid_request", "n"),
    ({"stream": 1}, "invalid_request", "stream"),
    ({"stream_options": {"include_usage": "yes"}}, "invalid_request", "stream_options.include_usage"),
    ({"temperature": "hot"}, "invalid_request", "temperature"),
    ({"temperature": 2.1}, "invalid_request", "temperature"),
    ({"top_p": -0.1}, "invalid_request", "top_p"),
    ({"max_tokens": 0}, "invalid_request", "max_tokens"),
    ({"max_completion_tokens": 1.5}, "invalid_request", "max_completion_tokens"),
    ({"max_completion_tokens": 10**30}, "invalid_request", "max_completion_tokens"),
    ({"max_completion_tokens": 1e30}, "invalid_request", "max_completion_tokens"),
    ({"max_tokens": "100"}, "invalid_request", "max_tokens"),
    ({"n": 9.0}, "invalid_request", "n"),
    ({"top_logprobs": 0.5}, "invalid_request", "top_logprobs"),
    ({"seed": 2**63}, "invalid_request", "seed"),
    ({"stop": [1]}, "invalid_request", "stop[0]"),
    ({"logit_bias": {"a": 1}}, "invalid_request", "logit_bias"),
    ({"top_logprobs": 21}, "invalid_request", "top_logprobs"),
    ({"tools": [{"type": "web_search"}]}, "invalid_request", "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "invalid_request", "tools[0].function"),
    ({"tools": {}}, "invalid_request", "tools"),
    ({"tool_choice": "sure"}, "invalid_request", "tool_choice"),
    ({"response_format": {"type": "xml"}}, "invalid_request", "response_format.type"),
    ({"reasoning_effort": "A LOT"}, "invalid_request", "reasoning_effort"),
]


@pytest.mark.parametrize(("body", "code", "param"), REFUSED)
def test_what_is_not_valid_is_refused_with_the_field(body: Any, code: str, param: str | None) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(request_body(**body)).encode()
    with pytest.raises(GatewayError) as caught:
        parse(raw, IMAGE_HOSTS)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.status == 400
    for told in ("evil", "hot", "A LOT", "xml", "sure"):
        assert told not in caught.value.message


def test_what_goes_on_is_as_it_came() -> None:
    messages = '[ {"role" : "user",\n"content":"h\\u00e9 \\ud83d\\ude00"} ]'
    tools = '[{"type":"function","function":{"name":"f","parameters":{"max":1.0,"big":123456789012345678901}}}]'
    body = f'{{"model":"m","messages":{messages},"tools":{tools},"response_format":{{"type":"json_object"}}}}'
    sent = parse(body.encode(), IMAGE_HOSTS).encode("u", 9, LIMIT)
    assert messages.encode() in sent
    assert tools.encode() in sent
    assert json.loads(sent)[LIMIT] == 9


def test_members_that_nobody_knows_are_dropped_from_messages() -> None:
    answered = {"role": "assistant", "content": "x", "annotations": [], "audio": None, "refusal": None}
    request = parsed(messages=[{"role": "user", "content": "Hi", "api_base": "http://evil"}, answered])
    assert json.loads(request.encode("u", 9, LIMIT))["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "x", "refusal": None},
    ]


def test_what_costs_money_that_no_usage_tells_of_is_dropped() -> None:
    cache = {"cache_control": {"type": "ephemeral", "ttl": "31536000s"}}
    picture = {"type": "image_url", "image_url": {"url": PNG, "format": "video/mp4"}, **cache}
    thoughts = [{"type": "thinking", "thinking": "x", "signature": "s", **cache}]
    request = parsed(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hi", **cache}, picture], **cache},
            {
                "role": "assistant",
                "content": "x",
                "thinking_blocks": thoughts,
                "provider_specific_fields": {"thought_signatures": ["t"], **cache},
            },
        ],
        tools=[{**TOOL, **cache}],
    )
    sent = json.loads(request.encode("u", 9, LIMIT))
    assert sent["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": PNG}}]},
        {
            "role": "assistant",
            "content": "x",
            "thinking_blocks": [{"type": "thinking", "thinking": "x", "signature": "s"}],
            "provider_specific_fields": {"thought_signatures": ["t"]},
        },
    ]
    assert sent["tools"] == [TOOL]


@pytest.mark.parametrize("element", [True, None, 0, {}, [], "", [1, 1], {"a": 1}])
def test_schemas_count_as_they_are_sent_and_as_templates_write_them(element: Any) -> None:
    """Some write JSON again, indented: each element on a line of its own."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"enum": [element] * 1000}}}]
    for given in ({"tools": tools}, {"response_format": {"type": "json_schema", "json_schema": tool_schema(tools)}}):
        prompt = parsed(**given).prompt
        written = json.dumps(next(iter(given.values())))
        text, signs = len("user" + "Hi" + written), sum(written.count(sign) for sign in ",{[")
        assert (prompt.text_bytes, prompt.separators) == (text, signs)
        assert prompt.bound(Model("m")) == text + 4 * signs + 16  # type: ignore[arg-type]


def tool_schema(tools: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": "s", "schema": tools[0]["function"]["parameters"]}


def test_of_a_member_that_stands_twice_the_last_counts_everywhere() -> None:
    body = b'{"model":"evil","model":"m","messages":[{"role":"user","content":"abcdef","content":"ab"}]}'
    request = parse(body, IMAGE_HOSTS)
    assert request.model == "m"
    assert request.prompt.text_bytes == len("user") + 2
    assert b"evil" not in request.encode("u", 9, LIMIT)


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_tokens": 100.0}, 100),
        ({"max_completion_tokens": 1e2}, 100),
    ],
)
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_completion_limit_goes_out_under_the_models_name_for_it(
    given: dict[str, Any], limit: int | None, name: str
) -> None:
    request = parsed(**given)
    assert request.limit == limit
    sent = json.loads(request.encode("u", 7, name))
    assert {key: value for key, value in sent.items() if key.startswith("max_")} == {name: 7}


def test_the_prompt_is_measured_by_all_its_strings() -> None:
    calls = [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]
    request = parsed(
        messages=[
            {"role": "system", "content": "é" * 10},
            {"role": "user", "content": [{"type": "text", "text": "abc"}, *image(PNG)[0]["content"]]},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "done", "tool_call_id": "c1"},
        ],
        tools=[TOOL],
        response_format={"type": "json_object"},
    )
    text = len("system") + 20 + len("user") + len("text" + "abc") + len("image_url")
    text += len("assistant") + len("tool" + "done" + "c1")
    schemas = [json.dumps(value) for value in (calls, [TOOL], {"type": "json_object"})]
    text += sum(map(len, schemas))
    signs = sum(schema.count(sign) for schema in schemas for sign in ",{[")
    assert request.prompt == Prompt(text, 1, 4, signs)
    assert request.prompt.bound(Model("m")) == text + 4 * signs + 4 * 16 + 1000  # type: ignore[arg-type]
    third = Model("m", prompt_bytes_per_token=3)
    assert request.prompt.bound(third) == -(-text // 3) + 4 * signs + 4 * 16 + 1000  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [True, False])
async def test_a_body_over_the_limit_is_413_with_or_without_its_length(gateway: Gateway, length: bool) -> None:
    async def flood() -> Any:
        for _ in range(400):
            yield b" " * 65536

    data: Any = b" " * (gateway.settings.max_request_size_bytes + 1) if length else flood()
    headers = {"Authorization": "Bearer good-token", "Content-Type": "application/json"}
    async with gateway.session.post(f"{gateway.url}/v1/chat/completions", data=data, headers=headers) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("application/json; charset=utf-16", 400),
        ("text/plain", 400),
        ("application/x-www-form-urlencoded", 400),
        ("multipart/form-data; boundary=x", 400),
    ],
)
async def test_the_content_type_has_to_be_json(gateway: Gateway, content_type: str, status: int) -> None:
    got, body, _ = await gateway.read(headers={"Content-Type": content_type})
    assert got == status, body


async def test_a_prompt_beyond_the_context_window_is_413_and_asks_nobody(gateway: Gateway) -> None:
    gateway.models["double"] = Model("double", context_window=100)
    status, body, _ = await gateway.read({"messages": [{"role": "user", "content": "x" * 1000}]})
    assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")
    assert (await gateway.read())[0] == 200
    assert len(gateway.double.asked) == 1


async def test_a_model_that_is_unknown_is_refused_and_never_a_label(gateway: Gateway) -> None:
    status, body, _ = await gateway.read({"model": "unknown-thing"})
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_model")
    assert b"unknown-thing" not in gateway.registry.render()


async def test_a_client_that_leaves_while_sending_its_body_leaves_nothing(gateway: Gateway) -> None:
    client = await RawClient.open(gateway.port, None)
    client.ask(request_body(), declare=10_000)
    await client.writer.drain()
    client.close()
    assert (await gateway.read())[0] == 200
    assert len(gateway.budgets.asks) == 1


@pytest.mark.parametrize("size", [10, 400_000])
async def test_half_a_character_in_a_request_becomes_the_replacement_character(gateway: Gateway, size: int) -> None:
    text = "x" * size + "\ud83d\ude00" + "\ud83d"
    status, _, _ = await gateway.read({"messages": [{"role": "user", "content": text}]})
    assert status == 200
    assert gateway.double.asked[0].body["messages"][0]["content"] == "x" * size + "\U0001f600\ufffd"


async def test_a_million_small_items_are_refused(gateway: Gateway) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"e": [[]] * 400_000}}}]
    status, body, _ = await gateway.read({"tools": tools})
    assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")
    assert gateway.double.asked == []


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"messages": [{"role": "evil", "content": "x"}]}, "`assistant`"),
        ({"messages": part(type="file", file={})}, "`image_url`"),
        ({"tools": [{"type": "web_search"}]}, "`function`"),
        ({"tool_choice": "sure"}, "`required`"),
        ({"response_format": {"type": "xml"}}, "`json_schema`"),
        ({"reasoning_effort": "A LOT"}, "lower-case"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "A-Z a-z 0-9"),
        ({"n": 9}, "<= 8"),
    ],
)
def test_a_refusal_names_what_is_allowed(body: dict[str, Any], named: str) -> None:
    with pytest.raises(GatewayError) as caught:
        parsed(**body)
    assert named in caught.value.message
