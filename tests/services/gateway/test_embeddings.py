"""POST /v1/embeddings: what is refused, what reaches LiteLLM, what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import openai
import pytest
from hypothesis import given, strategies as st

from services.gateway.budget.models import Usage
from services.gateway.catalogue.prices import PricedModel
from services.gateway.embeddings import EMBEDDINGS, LONG_ANSWER, Tally, parse
from services.gateway.errors import BudgetExceeded, InvalidModel, InvalidRequest, RateLimited, UpstreamError
from services.gateway.upstream.client import MAX_ANSWER
from tests.doubles.litellm import LiteLLMDouble, Script, embeddings, error_body
from tests.services.gateway.conftest import TOKEN, Gateway, Model
from tests.support.configs import upstream_at

MODEL = "embed/small"


@pytest.fixture
async def gateway(double: LiteLLMDouble) -> AsyncIterator[Gateway]:
    async with Gateway(double, upstream_at(double.url), paid=[EMBEDDINGS]).running() as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


MANY = {"input": ["a"] * 17}


async def ask(gateway: Gateway, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps({"model": MODEL, **body}).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    async with gateway.session.post(f"{gateway.url}/v1/embeddings", data=data, headers=headers) as answer:
        return answer.status, json.loads(await answer.read())


@pytest.mark.parametrize("encoding", ["base64", "float"])
async def test_the_official_client_gets_its_vectors(
    gateway: Gateway, client: openai.AsyncOpenAI, encoding: Any
) -> None:
    got = await client.embeddings.create(model=MODEL, input=["a", "b"], encoding_format=encoding, dimensions=4)
    assert len(got.data) == 2
    if encoding == "float":
        assert got.data[1].embedding == [0.25, -0.5, 0.0, 1.0]
    assert got.usage.prompt_tokens == 10
    assert gateway.double.asked[0].body == {
        "model": MODEL,
        "input": ["a", "b"],
        "encoding_format": encoding,
        "dimensions": 4,
        "user": "uid:ai",
    }


async def test_the_official_clients_default_is_decoded(client: openai.AsyncOpenAI) -> None:
    got = await client.embeddings.create(model=MODEL, input="a")
    assert list(got.data[0].embedding) == [0.25, -0.5, 0.0, 1.0]


async def test_no_room_for_a_large_answer_is_refused_before_litellm_is_asked(gateway: Gateway) -> None:
    gateway.answers.held = gateway.answers.most_bytes - MAX_ANSWER + 1
    status, body = await ask(gateway, MANY)
    assert (status, body["error"]["code"], gateway.double.asked) == (503, "unavailable", [])
    assert not (await gateway.budgets.wait_settled()).sent
    assert (await ask(gateway, {"input": ["a"] * 16}))[0] == 200, "a small one has room"
    gateway.answers.held -= 1
    assert (await ask(gateway, MANY))[0] == 200


async def test_a_user_who_does_not_take_large_answers_gets_no_more_of_them(gateway: Gateway) -> None:
    quarter = gateway.answers.most_bytes // 4
    gateway.answers.of_users.update({"uid:ai": quarter, "another:ai": quarter})
    status, body = await ask(gateway, MANY)
    assert (status, body["error"]["code"], gateway.double.asked) == (429, "rate_limit_exceeded", [])
    assert not (await gateway.budgets.wait_settled()).sent
    gateway.answers.of_users["uid:ai"] -= 1
    assert (await ask(gateway, MANY))[0] == 200


async def test_an_answer_is_relayed_as_it_is_and_settled_by_what_litellm_says(gateway: Gateway) -> None:
    body = json.dumps(embeddings(2), indent=1).encode()
    gateway.double.script(MODEL, Script.json(body, x_litellm_response_cost="0.0000007"))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    given = {"model": MODEL, "input": "Grüße"}
    async with gateway.session.post(f"{gateway.url}/v1/embeddings", json=given, headers=headers) as answer:
        assert (answer.status, await answer.read()) == (200, body)
        assert answer.headers["x-ratelimit-limit-requests"] == "40"
    (admitted,) = gateway.budgets.asks
    assert (admitted.model.name, admitted.limit, admitted.n) == (MODEL, 0, 1)
    assert (admitted.prompt_bound, admitted.estimated_prompt_tokens) == (7 + 16, 1)
    delivery = await gateway.budgets.wait_settled()
    assert (delivery.usage, delivery.response_cost) == (Usage(10, 0), Decimal("0.0000007"))
    assert gateway.metric("chat_availability_total", outcome="success", reason="none") == 1
    labels = {"model": MODEL, "service_type": "ai", "purpose": "none"}
    assert gateway.metric("embedding_tokens_total", **labels) == 10
    assert gateway.metric("embedding_latency_seconds_count", result="success", model=MODEL) == 1


LONG = [[1, 2, 3], [4] * 100]


@pytest.mark.parametrize(
    ("given", "decodes", "bound", "estimate"),
    [
        ("x" * 400, False, 400 + 16, 100),
        (["x" * 40, "ü" * 40], False, 40 + 80 + 32, 30),
        ([5] * 50, False, 50 + 16, 50),
        (LONG, False, 103 + 32, 103),
        (LONG, True, 103 * 128 + 32, 103),
        ([[100256] * 45] * 2048, False, 2048 * (45 + 16), 2048 * 45),
    ],
)
async def test_inputs_are_bound_by_their_bytes_or_their_tokens(
    gateway: Gateway, given: Any, decodes: bool, bound: int, estimate: int
) -> None:
    gateway.models[MODEL] = Model(MODEL, embedding=True, decodes_tokens=decodes)
    assert (await ask(gateway, {"input": given}))[0] == 200
    (admitted,) = gateway.budgets.asks
    assert (admitted.prompt_bound, admitted.estimated_prompt_tokens) == (bound, estimate)
    await gateway.budgets.wait_settled()


@pytest.mark.parametrize(
    "members",
    [
        {"input": [[1] * 48] * 2048},
        {"input": ["x"] * 33_000},
        {"input": "x", **{str(number): 1 for number in range(33_000)}},
    ],
    ids=["tokens", "texts", "names"],
)
async def test_a_body_of_too_many_items_is_too_large(gateway: Gateway, members: dict[str, Any]) -> None:
    status, body = await ask(gateway, members)
    assert (status, body["error"]["code"], "members and elements" in body["error"]["message"]) == (
        413,
        "request_too_large",
        True,
    )


async def test_an_item_above_the_models_window_is_too_large_though_others_are_not(gateway: Gateway) -> None:
    gateway.models[MODEL] = Model(MODEL, embedding=True, context_window=100)
    assert (await ask(gateway, {"input": ["x" * 400] * 5}))[0] == 200
    for large in (["x", "x" * 404], [[1], [2] * 101]):
        status, body = await ask(gateway, {"input": large})
        assert (status, body["error"]["code"], body["error"]["param"]) == (413, "request_too_large", "input")
    assert len(gateway.budgets.asks) == 1
    await gateway.budgets.wait_settled()


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"encoding_format": "base64"}, 200),
        ({"encoding_format": "float"}, 413),
        ({}, 413),
        ({"dimensions": 256}, 200),
        ({"encoding_format": "base64", "dimensions": 4096}, 413),
    ],
)
async def test_a_request_whose_answer_would_be_too_large_is_refused_before_it_costs_anything(
    gateway: Gateway, options: dict[str, Any], status: int
) -> None:
    gateway.models[MODEL] = Model(MODEL, embedding=True, vector_size=3072)
    got, answer = await ask(gateway, {"input": ["a"] * 2048, **options})
    assert got == status
    if status == 413:
        assert (answer["error"]["code"], answer["error"]["param"]) == ("request_too_large", "input")
    assert len(gateway.budgets.asks) == (1 if status == 200 else 0)
    await asyncio.gather(*(gateway.budgets.wait_settled() for _ in gateway.budgets.asks))


async def test_the_largest_answer_is_relayed(gateway: Gateway) -> None:
    vector = b"A" * (3072 * 16 // 3)
    items = b",".join(b'{"object":"embedding","index":%d,"embedding":"%b"}' % (n, vector) for n in range(2048))
    body = b'{"object":"list","data":[%b],"usage":{"prompt_tokens":2048,"total_tokens":2048}}' % items
    gateway.double.script(MODEL, Script.json(body))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    asked = {"model": MODEL, "input": ["a"] * 2048, "encoding_format": "base64"}
    async with gateway.session.post(f"{gateway.url}/v1/embeddings", json=asked, headers=headers) as answer:
        assert (answer.status, await answer.read() == body) == (200, True)
    assert (await gateway.budgets.wait_settled()).usage == Usage(2048, 0)


REFUSED: list[tuple[Any, str, str | None]] = [
    (b"", "invalid_request", None),
    (b"[]", "invalid_request", None),
    (b'{"model":"embed","input":"\xff"}', "invalid_request", "input"),
    (b'{"model":"embed","input":"a","x":"\xff"}', "invalid_request", None),
    (b'{"model":"embed","input":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "invalid_request", None),
    ({}, "invalid_request", "input"),
    *(
        ({"input": one}, "invalid_request", "input")
        for one in (None, "", [], 5, {"text": "a"}, ["a", 5], [5, [5]], ["a", [5]], ["x"] * 2049, [[1]] * 2049, True)
    ),
    ({"input": ["a", ""]}, "invalid_request", "input[1]"),
    ({"input": [[]]}, "invalid_request", "input[0]"),
    ({"input": [-1]}, "invalid_request", "input[0]"),
    ({"input": [[5, 2**31]]}, "invalid_request", "input[0][1]"),
    ({"input": [1.5]}, "invalid_request", "input[0]"),
    ({"input": [True]}, "invalid_request", "input[0]"),
    ({"input": "a", "encoding_format": "int8"}, "invalid_request", "encoding_format"),
    ({"input": "a", "dimensions": 0}, "invalid_request", "dimensions"),
    ({"input": "a", "dimensions": 1.5}, "invalid_request", "dimensions"),
    ({"input": "a", "dimensions": "4"}, "invalid_request", "dimensions"),
    ({"input": "a", "model": 5}, "invalid_model", "model"),
    ({"input": "a", "model": "unknown"}, "invalid_model", "model"),
]


@pytest.mark.parametrize(("body", "code", "param"), REFUSED, ids=lambda value: str(value)[:40])
async def test_what_is_not_a_valid_request_is_refused_and_nothing_is_reserved(
    gateway: Gateway, body: Any, code: str, param: str | None
) -> None:
    status, answer = await ask(gateway, body)
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (400, code, param)
    assert (gateway.budgets.asks, gateway.double.asked) == ([], [])


async def test_chat_models_make_no_embeddings_and_the_other_way_round(gateway: Gateway) -> None:
    status, answer = await ask(gateway, {"model": "double", "input": "a"})
    assert (status, answer["error"]["mlpa_code"]) == (400, 8)
    assert answer["error"]["message"] == "The model makes no embeddings."
    status, body, _ = await gateway.read({"model": MODEL})
    assert (status, json.loads(body)["error"]["message"]) == (400, "The model makes embeddings alone.")
    assert (gateway.budgets.asks, gateway.double.asked) == ([], [])


async def test_all_other_parameters_are_dropped_and_the_rest_is_forwarded_as_it_was(gateway: Gateway) -> None:
    raw = (
        b'{"model":"embed","input":["caf\\u00e9 \\ud83d"],"dimensions":256.0,"encoding_format":null,'
        b'"user":"me","metadata":{"x":1},"api_base":"http://evil","mock_response":"x","input_type":"query"}'
    )
    assert (await ask(gateway, raw))[0] == 200
    forwarded = gateway.double.asked[0]
    assert forwarded.raw == (
        b'{"model":"embed","input":["caf\\u00e9 \\ufffd"],"dimensions":256,"encoding_format":null,"user":"uid:ai"}'
    )
    await gateway.budgets.wait_settled()


@pytest.mark.parametrize(
    ("script", "status", "code", "charged"),
    [
        (Script.json(error_body("no", "x", "400"), status=400), 400, "invalid_request", False),
        (Script.json(error_body("slow", "throttling_error", "429"), status=429), 429, "upstream_rate_limited", False),
        (Script.json({"error": {"message": "no"}}), 502, "upstream_error", False),
        (Script([("send", b"{{")], content_type="application/json"), 502, "upstream_error", True),
        (Script([("send", b'{"data":'), ("cut", None)], content_type="application/json"), 502, "upstream_error", True),
    ],
)
async def test_errors_are_those_of_chat(
    gateway: Gateway, client: openai.AsyncOpenAI, script: Script, status: int, code: str, charged: bool
) -> None:
    gateway.double.script(MODEL, script)
    with pytest.raises(openai.APIStatusError) as caught:
        await client.embeddings.create(model=MODEL, input="a")
    assert (caught.value.status_code, caught.value.code) == (status, code)
    delivery = await gateway.budgets.wait_settled()
    assert (delivery.sent, delivery.refused, delivery.usage) == (True, not charged, None)
    assert gateway.metric("chat_request_rejections_total", model=MODEL, reason=code, service_type="ai") == 1


async def test_refusals_of_budgets_reach_the_official_client(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    for error, mlpa_code in ((BudgetExceeded(retry_after=5), 1), (RateLimited("rpm", retry_after=5), 2)):
        gateway.budgets.refuse = error
        with pytest.raises(openai.RateLimitError) as caught:
            await client.embeddings.create(model=MODEL, input="a")
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["mlpa_code"] == mlpa_code
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="bad").embeddings.create(model=MODEL, input="a")
    assert gateway.double.asked == []


async def test_a_client_that_leaves_ends_the_request_which_is_charged_whole(gateway: Gateway) -> None:
    gateway.double.script(MODEL, Script(first=[("hang", None)]))
    asking = asyncio.create_task(ask(gateway, {"input": "a"}))
    asked = await gateway.double.wait_asked()
    asking.cancel()
    await asyncio.wait_for(asked.ended.wait(), 5)
    delivery = await gateway.budgets.wait_settled()
    assert (asked.state, delivery.outcome, delivery.sent, delivery.usage) == ("gone", "abort", True, None)
    assert gateway.metric("embedding_latency_seconds_count", result="abort", model=MODEL) == 1


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "total_tokens": 5}, Usage(5, 0)),
        ({"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 9}, Usage(9, 0)),
        ({"total_tokens": 3}, Usage(3, 0)),
        ({"prompt_tokens": 0, "total_tokens": 0}, None),
        ({"prompt_tokens": "5"}, None),
        (None, None),
        ([], None),
    ],
)
def test_usage_that_cannot_be_true_counts_as_none(usage: Any, expected: Usage | None) -> None:
    tally = Tally()
    tally.read_answer(json.dumps({"usage": usage, "data": []}).encode())
    assert tally.usage == expected


def test_a_long_answer_is_read_from_its_end() -> None:
    vector = b'{"data":[{"embedding":"' + b"A" * LONG_ANSWER + b'"}],'
    for rest, tokens in (
        (b'"usage":{"prompt_tokens":7,"total_tokens":7}}', 7),
        (b'"usage":{"prompt_tokens":7},"x":[1]}\n', 7),
        (b'"usage":{"prompt_tokens":7},"m":{"usage":{"prompt_tokens":9}}}', 7),
        (b'"usage":{"prompt_tokens":7},"m":["usage"]}', 7),
        (b'"usage":null}', None),
        (b'"object":"list"}', None),
    ):
        tally = Tally()
        assert tally.read_answer(vector + rest) == vector + rest
        assert (tally.usage and tally.usage.prompt_tokens) == tokens
    with pytest.raises(UpstreamError):
        Tally().read_answer(vector + b'"usage":{"prompt_tokens":7}')


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
inputs = texts | st.lists(texts, min_size=1) | st.lists(st.integers(0, 99), min_size=1)


@given(values | st.fixed_dictionaries({"model": st.just("m"), "input": values}) | st.binary())
def test_any_body_is_read_or_refused(body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        asked = parse(raw)
    except (InvalidModel, InvalidRequest):
        return
    assert asked.items >= 1


@given(values | st.fixed_dictionaries({"usage": values, "error": values}) | st.binary())
def test_any_answer_is_read_or_an_error_of_upstream(body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    tally = Tally()
    try:
        assert tally.read_answer(raw) == raw
    except UpstreamError:
        assert tally.usage is None
    else:
        assert tally.usage is None or tally.usage.prompt_tokens > 0


@given(inputs, st.integers(1, 16), st.booleans())
def test_the_bound_is_never_below_the_estimate_of_the_longest_tokens(given: Any, per_token: int, decodes: bool) -> None:
    """A tokenizer of a byte a token is the worst there is."""
    model = PricedModel("m", Decimal(1), Decimal(0), prompt_bytes_per_token=per_token, decodes_tokens=decodes)
    asked = parse(json.dumps({"model": "m", "input": given}).encode())
    size = asked.size(model)
    listed = given if isinstance(given, list) else [given]
    tokens = sum(len(one.encode()) if isinstance(one, str) else per_token for one in listed)
    assert size.prompt_bound * per_token >= tokens
    assert size.prompt_bound >= 17
