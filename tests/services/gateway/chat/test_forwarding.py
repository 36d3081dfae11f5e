"""What LiteLLM is sent: the JSON values that the client sent, less the members that are not forwarded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from services.gateway.chat.operation import sampling
from services.gateway.chat.request import parse
from services.gateway.errors import GatewayError
from tests.support.configs import changed
from tests.support.service_types import service_type

MODEL = '"model":"m","messages":[{"role":"user","content":"x"}]'


class Pairs(list[Any]):
    """A JSON object as it is written: its order, and members that stand twice."""


def read(text: str | bytes) -> Any:
    """JSON with every number as it is written."""
    return json.loads(text, parse_float=lambda number: ("float", number), object_pairs_hook=Pairs)


def forwarded(body: str) -> Any:
    return dict(read(parse(body.encode(), frozenset()).encode("u", 9, "max_tokens")))


# Objects as lists of members, so that order, spelling of numbers and repeated members are part of what is tried.
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
NUMBERS = st.sampled_from(["0", "-0", "1.0", "1e2", "100.0", "1E-7", "123456789012345678901234567890", "0.1000"])
ANY = st.recursive(
    st.one_of(st.just("null"), st.just("true"), NUMBERS, TEXT.map(json.dumps)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{' , '.join(items)}]"),
        st.lists(st.tuples(TEXT.map(json.dumps), inner), max_size=3).map(
            lambda items: f"{{ {','.join(f'{name} :{value}' for name, value in items)} }}"
        ),
    ),
    max_leaves=6,
)
#: Members that models answer, or clients add, and that nobody is sent.
DROPPED = st.tuples(
    st.sampled_from(
        ["annotations", "audio", "images", "reasoning_items", "cache_control", "citations", "\u00e9", 'a"b']
    ),
    ANY,
)
STRING, MAYBE = TEXT.map(json.dumps), TEXT.map(json.dumps) | st.just("null")


@st.composite
def objects(
    draw: st.DrawFn, needed: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]
) -> tuple[str, str]:
    """An object as a client writes it, and as it must be forwarded. A value is text, or such a pair itself."""
    names = [*needed, *(draw(st.lists(st.sampled_from(sorted(optional)), unique=True)) if optional else [])]
    members = [(name, draw({**needed, **optional}[name])) for name in names]
    members += [(name, (value, None)) for name, value in draw(st.lists(DROPPED, max_size=2))]
    members = draw(st.permutations(members))
    spaces = draw(st.sampled_from(["", " ", "\n\t"]))
    pairs = [(json.dumps(name), value if isinstance(value, tuple) else (value, value)) for name, value in members]
    given_ = ",".join(f"{spaces}{name}{spaces}:{spaces}{value[0]}" for name, value in pairs)
    kept = ",".join(f"{name}:{value[1]}" for name, value in pairs if value[1] is not None)
    return f"{{{given_}{spaces}}}", f"{{{kept}}}"


def lists(of: st.SearchStrategy[tuple[str, str]], least: int = 0) -> st.SearchStrategy[tuple[str, str]]:
    return st.lists(of, min_size=least, max_size=3).map(
        lambda pairs: (f"[{', '.join(pair[0] for pair in pairs)}]", f"[{','.join(pair[1] for pair in pairs)}]")
    )


def or_null(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return of | st.just("null")


def left_out_if_empty(pair: tuple[str, str]) -> tuple[str, str | None]:
    """Signatures of which nothing is left leave no member behind; an empty object that was sent stays."""
    given_, kept = pair
    return (given_, None) if kept == "{}" and json.loads(given_) else pair


SIGNATURES = or_null(
    objects(
        {},
        {
            "thought_signature": MAYBE,
            "thought_signatures": or_null(st.lists(STRING, max_size=2).map(lambda s: f"[{','.join(s)}]")),
        },
    ).map(left_out_if_empty)
)
CALLED = objects({}, {"name": MAYBE, "arguments": STRING, "provider_specific_fields": SIGNATURES})
TOOL_CALL = objects(
    {"function": CALLED},
    {
        "id": MAYBE,
        "type": st.just('"function"'),
        "index": or_null(st.just("0")),
        "provider_specific_fields": SIGNATURES,
    },
)
THINKING = objects(
    {"type": st.sampled_from(['"thinking"', '"redacted_thinking"'])},
    {"thinking": MAYBE, "signature": MAYBE, "data": MAYBE},
)
PNG = json.dumps("data:image/png;base64,AAAA")
PARTS = lists(
    objects({"type": st.just('"text"'), "text": STRING}, {"image_url": st.just("null")})
    | objects({"type": st.just('"refusal"'), "refusal": STRING}, {"text": st.just("null")})
    | objects(
        {"type": st.just('"image_url"'), "image_url": objects({"url": st.just(PNG)}, {"detail": MAYBE}) | st.just(PNG)},
        {},
    )
)
ANSWER = objects(
    {"role": st.just('"assistant"')},
    {
        "content": or_null(STRING | PARTS),
        "name": MAYBE,
        "refusal": MAYBE,
        "reasoning_content": MAYBE,
        "tool_calls": or_null(lists(TOOL_CALL)),
        "function_call": or_null(CALLED),
        "thinking_blocks": or_null(lists(THINKING)),
        "provider_specific_fields": SIGNATURES,
    },
)
MESSAGES = lists(ANSWER | objects({"role": st.just('"user"'), "content": STRING}, {"name": MAYBE}), 1)
FUNCTION = objects(
    {"name": st.just('"f"')},
    {
        "description": MAYBE,
        "strict": or_null(st.just("true")),
        "parameters": or_null(ANY.filter(lambda v: v[0] == "{")),
    },
)
TOOLS = lists(objects({"type": st.just('"function"'), "function": FUNCTION}, {}), 1)


@given(MESSAGES)
def test_messages_go_on_as_they_were_sent_less_what_is_dropped(messages: tuple[str, str]) -> None:
    sent, expected = messages
    assert forwarded(f'{{"model":"m","messages":{sent}}}')["messages"] == read(expected)


@given(TOOLS)
def test_tools_go_on_as_they_were_sent_less_what_is_dropped(tools: tuple[str, str]) -> None:
    sent, expected = tools
    assert forwarded(f'{{{MODEL},"tools":{sent}}}')["tools"] == read(expected)


@given(st.binary(max_size=30) | ANY.map(str.encode))
def test_what_is_passed_on_unread_is_json_or_refused(value: bytes) -> None:
    """Nothing that one parser takes for a value, and the next one for more than that."""
    schema = b'{"a":' + value + b"}"
    body = b'{%b,"tools":[{"type":"function","function":{"name":"f","parameters":%b}}]}' % (MODEL.encode(), schema)
    try:
        sent = parse(body, frozenset()).encode("u", 9, "max_tokens")
    except GatewayError:
        return
    tools = f'[{{"type":"function","function":{{"name":"f","parameters":{schema.decode()}}}}}]'
    assert read(sent) == read(f'{{{MODEL},"tools":{tools},"max_tokens":9,"user":"u","stream":false}}')


@pytest.mark.parametrize(
    "parameter",
    [
        '"temperature":1',
        '"temperature":1.0',
        '"temperature":null',
        '"top_p":1e-1',
        '"stop":null',
        '"stop":[]',
        '"stop":""',
        '"stop":["a","\\u00e9"]',
        '"presence_penalty":-2',
        '"frequency_penalty":0.10',
        '"logit_bias":{"50256":-100,"7":1e1,"8":1}',
        '"logit_bias":{}',
        '"logprobs":false',
        '"top_logprobs":0',
        '"seed":-9223372036854775808',
        '"reasoning_effort":"high"',
        '"response_format":{"type":"json_object"}',
        '"response_format":null',
        '"n":1',
    ],
)
def test_a_parameter_goes_on_with_the_value_that_was_sent(parameter: str) -> None:
    name, value = read(f"{{{parameter}}}")[0]
    assert forwarded(f"{{{MODEL},{parameter}}}")[name] == value


@pytest.mark.parametrize("given_", ["2.0", "2e0", "0.2e1", "20e-1"])
def test_a_whole_number_written_as_a_float_goes_on_as_a_whole_number(given_: str) -> None:
    assert forwarded(f'{{{MODEL},"n":{given_}}}')["n"] == 2


@pytest.mark.parametrize("tools", ["", '"tools":[],', '"tools":null,', '"tools":[ ],'])
@pytest.mark.parametrize("choice", ['"tool_choice":"auto"', '"tool_choice":"none","parallel_tool_calls":false'])
def test_without_tools_nothing_about_tools_goes_on(tools: str, choice: str) -> None:
    sent = forwarded(f"{{{MODEL},{tools}{choice}}}")
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & sent.keys()


def test_with_tools_the_choice_goes_on_as_it_was_sent() -> None:
    tools = '"tools":[{"type":"function","function":{"name":"f"}}]'
    choice = '{"type":"function","function":{"name":"f"}}'
    sent = forwarded(f'{{{MODEL},{tools},"tool_choice":{choice},"parallel_tool_calls":true}}')
    assert (sent["tool_choice"], sent["parallel_tool_calls"]) == (read(choice), True)


@pytest.mark.parametrize(
    ("sent", "defaults"),
    [
        ("", {"temperature": 0.5, "top_p": 0.9}),
        ('"temperature":null,', {"temperature": 0.5, "top_p": 0.9}),
        ('"temperature":1,', {}),
        ('"top_p":1,', {}),
        ('"temperature":0,"top_p":null,', {}),
    ],
)
def test_a_default_of_sampling_is_for_requests_that_say_neither(sent: str, defaults: dict[str, float]) -> None:
    request = parse(f"{{{sent}{MODEL}}}".encode(), frozenset())
    body = json.loads(request.encode("u", 9, "max_tokens", {"temperature": 0.5, "top_p": 0.9}))
    given_ = json.loads(f'{{{sent}"x":1}}')
    for name in ("temperature", "top_p"):
        assert body.get(name) == defaults.get(name, given_.get(name))


def test_no_default_sends_nothing() -> None:
    assert not {"temperature", "top_p"} & forwarded(f"{{{MODEL}}}").keys()


#: The answer's message of LiteLLM, member for member (litellm/types/utils.py, Message and Delta), as SDKs append it.
ANSWERED = {
    "content": None,
    "role": "assistant",
    "tool_calls": [
        {
            "function": {"arguments": "", "name": "f", "provider_specific_fields": {"thought_signature": "s"}},
            "id": "call_1__thought__c2ln",
            "type": "function",
            "index": 0,
            "caller": {"type": "direct"},
        }
    ],
    "function_call": None,
    "images": [{"image_url": {"url": "data:image/png;base64,AAAA"}, "index": 0, "type": "image_url"}],
    "audio": {"id": "a", "data": "AAAA", "expires_at": 1, "transcript": "x"},
    "reasoning_content": "because",
    "reasoning_items": [{"type": "reasoning", "id": "r", "encrypted_content": None, "summary": []}],
    "thinking_blocks": [
        {"type": "thinking", "thinking": "because", "signature": "s", "cache_control": None},
        {"type": "redacted_thinking", "data": "d"},
    ],
    "annotations": [{"type": "url_citation", "url_citation": {"url": "https://example.org", "start_index": 1}}],
    "provider_specific_fields": {"refusal": None, "citations": [[{"cited_text": "x"}]], "thought_signatures": ["t"]},
}


def test_every_member_of_litellms_answers_may_come_back() -> None:
    conversation = [
        {"role": "user", "content": "Hi"},
        ANSWERED,
        {"role": "tool", "tool_call_id": "call_1__thought__c2ln", "content": ""},
    ]
    body = json.dumps({"model": "m", "messages": conversation}).encode()
    sent = json.loads(parse(body, frozenset()).encode("u", 9, "max_tokens"))["messages"]
    calls: Any = ANSWERED["tool_calls"]
    called = {name: value for name, value in calls[0].items() if name != "caller"}
    blocks: Any = ANSWERED["thinking_blocks"]
    del blocks[0]["cache_control"]
    assert sent == [
        conversation[0],
        {
            "content": None,
            "role": "assistant",
            "tool_calls": [called],
            "function_call": None,
            "reasoning_content": "because",
            "thinking_blocks": blocks,
            "provider_specific_fields": {"thought_signatures": ["t"]},
        },
        conversation[2],
    ]


def test_only_an_assistants_message_has_refusals() -> None:
    part = '[{"type":"refusal","refusal":"No."}]'
    assert forwarded(f'{{"model":"m","messages":[{{"role":"assistant","content":{part}}}]}}')
    for role in ("user", "system", "tool"):
        with pytest.raises(GatewayError) as caught:
            forwarded(f'{{"model":"m","messages":[{{"role":"{role}","content":{part}}}]}}')
        assert caught.value.param == "messages[0].content[0].type"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        ({}, {}, {}),
        ({}, {"temperature": 0.5}, {"temperature": 0.5}),
        ({"temperature": 0.0}, {"temperature": 0.5, "top_p": 0.1}, {"temperature": 0.0, "top_p": 0.1}),
        ({"top_p": 1.0}, {}, {"top_p": 1.0}),
    ],
)
def test_a_service_types_row_comes_before_the_settings(
    row: dict[str, float], settings: dict[str, float], expected: dict[str, float]
) -> None:
    ai = service_type(**row)  # type: ignore[arg-type]
    assert sampling(changed(**settings), ai) == expected
