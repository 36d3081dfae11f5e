"""POST /v1/search: what is refused, what reaches LiteLLM, what comes back, what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st

from services.gateway.budget.charging import charge
from services.gateway.budget.models import Usage
from services.gateway.errors import BudgetExceeded, InvalidRequest, UpstreamError
from services.gateway.search import SEARCH, Tally, parse
from shared.domain.outcome import Outcome
from tests.doubles.litellm import LiteLLMDouble, Script, error_body, search_answer
from tests.services.gateway.conftest import TOKEN, Gateway
from tests.support.configs import upstream_at
from tests.support.service_types import service_type

TOOL = "exa-search"
AT = f"/v1/search/{TOOL}"
PRICED = {"search_tool": TOOL, "search_cost_nano": 5_000_000}
ROW = service_type(**PRICED)


@pytest.fixture
async def gateway(double: LiteLLMDouble) -> AsyncIterator[Gateway]:
    async with Gateway(double, upstream_at(double.url), paid=[SEARCH], row=PRICED).running() as gateway:
        yield gateway


async def ask(gateway: Gateway, body: Any, token: str = TOKEN) -> tuple[int, bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with gateway.session.post(f"{gateway.url}/v1/search", data=data, headers=headers) as answer:
        return answer.status, await answer.read()


async def test_a_search_goes_to_the_rows_tool_and_costs_what_litellm_says(gateway: Gateway) -> None:
    gateway.double.script(AT, Script.json(search_answer(2), x_litellm_response_cost="0.006"))
    status, body = await ask(gateway, {"query": "Bäume", "max_results": 2, "country": "NO", "user": "me"})
    expected = search_answer(2)
    for result in expected["results"]:
        result["publishedDate"] = result["date"]
    assert (status, json.loads(body)) == (200, expected)
    assert gateway.double.asked[0].body == {"query": "Bäume", "max_results": 2, "user": "uid:ai"}
    (admitted,) = gateway.budgets.asks
    assert (admitted.model.name, admitted.prompt_bound, admitted.estimated_prompt_tokens, admitted.limit) == (
        TOOL,
        0,
        0,
        0,
    )
    delivery = await gateway.budgets.wait_settled()
    assert (delivery.usage, delivery.response_cost) == (Usage(0, 0), Decimal("0.006"))
    assert charge(admitted, 0, delivery).cost_nano == 6_000_000
    assert gateway.metric("search_latency_seconds_count", result="success") == 1
    assert gateway.metric("chat_availability_total", outcome="success", reason="none") == 1


@pytest.mark.parametrize("cost", [{}, {"x_litellm_response_cost": "0.0"}, {"x_litellm_response_cost": "None"}])
async def test_a_search_of_which_litellm_knows_no_cost_costs_the_rows_price(
    gateway: Gateway, cost: dict[str, str]
) -> None:
    gateway.double.script(AT, Script.json(search_answer(), **cost))
    assert (await ask(gateway, {"query": "q"}))[0] == 200
    assert gateway.double.asked[0].body["max_results"] == 5
    delivery = await gateway.budgets.wait_settled()
    assert charge(gateway.budgets.asks[0], 0, delivery).cost_nano == 5_000_000


REFUSED: list[tuple[Any, str | None]] = [
    (b"", None),
    (b"[]", None),
    (b'{"query":"\xff"}', "query"),
    (b'{"query":"a","x":"\xff"}', None),
    ({}, "query"),
    *(({"query": query}, "query") for query in (None, "", 5, ["a"], "x" * 2001, {"a": 1})),
    *(({"query": "a", "max_results": number}, "max_results") for number in (0, 11, 1.5, "5", True, [5])),
]


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=lambda value: str(value)[:40])
async def test_what_is_not_a_valid_search_is_refused_and_nothing_is_reserved(
    gateway: Gateway, body: Any, param: str | None
) -> None:
    status, answer = await ask(gateway, body)
    error = json.loads(answer)["error"]
    assert (status, error["code"], error["mlpa_code"], error["param"]) == (400, "invalid_request", 9, param)
    assert (gateway.budgets.asks, gateway.double.asked) == ([], [])


async def test_a_query_may_have_its_2000_characters_whatever_bytes_they_are(gateway: Gateway) -> None:
    assert (await ask(gateway, {"query": "🔥" * 2000, "max_results": 10.0}))[0] == 200
    assert gateway.double.asked[0].body == {"query": "🔥" * 2000, "max_results": 10, "user": "uid:ai"}
    await gateway.budgets.wait_settled()
    assert (await ask(gateway, b'{"query":"half of \\ud83d","max_results":null}'))[0] == 200
    assert gateway.double.asked[1].body["query"] == "half of �"
    await gateway.budgets.wait_settled(2)


async def test_a_row_without_a_search_tool_has_no_search(double: LiteLLMDouble) -> None:
    async with Gateway(double, upstream_at(double.url), paid=[SEARCH]).running() as gateway:
        status, answer = await ask(gateway, {"query": "q"})
        error = json.loads(answer)["error"]
        assert (status, error["mlpa_code"], error["message"]) == (400, 9, "This service type has no search.")
    assert double.asked == []


@pytest.mark.parametrize(
    ("script", "status", "code", "cost_nano"),
    [
        (Script.json(error_body("no", "x", "400"), status=400), 400, "invalid_request", 0),
        (Script.json(error_body("slow", "throttling_error", "429"), status=429), 429, "upstream_rate_limited", 0),
        (Script.json(error_body("broken", None, "500"), status=500), 502, "upstream_error", 0),
        (Script.json({"error": {"message": "no"}}), 502, "upstream_error", 0),
        (Script.json(b"null"), 502, "upstream_error", 5_000_000),
        (Script([("send", b"{{")], content_type="application/json"), 502, "upstream_error", 5_000_000),
        (Script([("send", b"{"), ("cut", None)], content_type="application/json"), 502, "upstream_error", 5_000_000),
        (Script(first=[("reset", None)]), 502, "upstream_error", 5_000_000),
    ],
)
async def test_errors_are_those_of_chat_and_cost_the_price_only_if_there_may_have_been_an_answer(
    gateway: Gateway, script: Script, status: int, code: str, cost_nano: int
) -> None:
    gateway.double.script(AT, script)
    got, answer = await ask(gateway, {"query": "q"})
    assert (got, json.loads(answer)["error"]["code"]) == (status, code)
    delivery = await gateway.budgets.wait_settled()
    assert charge(gateway.budgets.asks[0], 0, delivery).cost_nano == cost_nano
    assert gateway.metric("chat_request_rejections_total", model=TOOL, reason=code, service_type="ai") == 1
    assert gateway.metric("search_latency_seconds_count", result="error") == 1


async def test_a_search_without_an_end_times_out(double: LiteLLMDouble) -> None:
    def shortened(settings: Any, registry: Any) -> Any:
        operation = SEARCH.make(settings, registry)
        assert operation.deadline == 15
        operation.deadline = 0.3  # type: ignore[misc]
        return operation

    paid = [replace(SEARCH, make=shortened)]
    double.script(AT, Script([("send", b"{"), ("hang", None)], content_type="application/json"))
    async with Gateway(double, upstream_at(double.url), paid=paid, row=PRICED).running() as gateway:
        status, answer = await ask(gateway, {"query": "q"})
        assert (status, json.loads(answer)["error"]["code"]) == (504, "upstream_timeout")
        delivery = await gateway.budgets.wait_settled()
        assert (delivery.outcome, charge(gateway.budgets.asks[0], 0, delivery).cost_nano) == ("timeout", 5_000_000)
        assert gateway.metric("search_latency_seconds_count", result="error") == 1
        await asyncio.wait_for(double.asked[0].ended.wait(), 5)


async def test_a_client_that_leaves_ends_the_search_which_is_charged(gateway: Gateway) -> None:
    gateway.double.script(AT, Script(first=[("hang", None)]))
    asking = asyncio.create_task(ask(gateway, {"query": "q"}))
    asked = await gateway.double.wait_asked()
    asking.cancel()
    await asyncio.wait_for(asked.ended.wait(), 5)
    delivery = await gateway.budgets.wait_settled()
    assert (asked.state, delivery.outcome) == ("gone", Outcome.ABORT)
    assert charge(gateway.budgets.asks[0], 0, delivery).cost_nano == 5_000_000


async def test_budgets_and_credentials_refuse_a_search_before_it_goes_out(gateway: Gateway) -> None:
    gateway.budgets.refuse = BudgetExceeded(retry_after=5)
    status, answer = await ask(gateway, {"query": "q"})
    assert (status, json.loads(answer)["error"]["mlpa_code"]) == (429, 1)
    assert (await ask(gateway, {"query": "q"}, "bad"))[0] == 401
    assert gateway.double.asked == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            b'{"object":"search","results":[{"date":"2026","x":1.50}]}',
            b'{"object":"search","results":[{"date":"2026","x":1.50,"publishedDate":"2026"}]}',
        ),
        (b'{"results":[{"date":null}]}', b'{"results":[{"date":null,"publishedDate":null}]}'),
        (b'{"results":[{"date":"a","publishedDate":"b"}]}', b'{"results":[{"date":"a","publishedDate":"b"}]}'),
        (b'{"results":[{"url":"u"},5,null,["date"]]}', b'{"results":[{"url":"u"},5,null,["date"]]}'),
        (b'{"results":[]}', b'{"results":[]}'),
        (b'{"results": null}', b'{"results": null}'),
        (b'{ "n": 12345678901234567890.5 }', b'{ "n": 12345678901234567890.5 }'),
    ],
)
def test_each_date_is_there_under_the_name_that_firefox_reads_too(answer: bytes, expected: bytes) -> None:
    tally = Tally()
    assert (tally.read_answer(answer), tally.usage, tally.error) == (expected, Usage(0, 0), None)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
results = st.lists(st.dictionaries(st.sampled_from(["date", "publishedDate", "url"]), values, max_size=3) | values)


@given(st.fixed_dictionaries({}, optional={"results": results | values, "error": values, "x": values}))
def test_nothing_else_of_an_answer_changes(answer: dict[str, Any]) -> None:
    raw = json.dumps(answer).encode()
    got = json.loads(Tally().read_answer(raw))
    if isinstance(listed := answer.get("results"), list):
        for result in listed:
            if isinstance(result, dict) and "date" in result:
                result.setdefault("publishedDate", result["date"])
    assert got == answer


@given(values | st.fixed_dictionaries({"query": values, "max_results": values}) | st.binary())
def test_any_body_is_read_or_refused(body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        asked = parse(raw, ROW)
    except InvalidRequest:
        return
    assert 1 <= asked.max_results <= 10
    assert 1 <= len(json.loads(bytes(asked.text))) <= 2000


@given(values | st.binary())
def test_any_answer_is_read_or_an_error_of_upstream(body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    tally = Tally()
    try:
        tally.read_answer(raw)
    except UpstreamError:
        assert tally.usage is None


async def test_members_whose_names_are_not_text_are_no_answer_and_within_a_result_stay(gateway: Gateway) -> None:
    gateway.double.script(AT, Script.json(b'{"\xff": 1, "results": []}'))
    status, answer = await ask(gateway, {"query": "q"})
    assert (status, json.loads(answer)["error"]["code"]) == (502, "upstream_error")
    delivery = await gateway.budgets.wait_settled()
    assert charge(gateway.budgets.asks[0], 0, delivery).cost_nano == 5_000_000
    results = b'{"results":[{"\xff":1},{"date":"x","publishedDate":"x"}]}'
    assert Tally().read_answer(b'{"results": [{"\xff":1}, {"date":"x"}]}') == results
