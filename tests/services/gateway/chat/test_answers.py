"""Answers that are not streams, and every error of LiteLLM as the client gets it."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest

from services.gateway.budget.models import Usage
from services.gateway.errors import KEY_REFUSALS
from services.gateway.upstream.balance import MAX_TRIED
from shared.errors import DependencyUnavailable
from tests.doubles.litellm import LiteLLMDouble, Script, answer, error_body
from tests.services.gateway.budget.support import BudgetReserved
from tests.services.gateway.conftest import Gateway
from tests.support.configs import upstream_at
from tests.support.waiting import until


async def test_half_a_character_in_an_answer_becomes_the_replacement_character(gateway: Gateway) -> None:
    body = answer("a \ud83d\ude00 and half of one: \ud83d")
    gateway.double.script("double", Script.json(body))
    status, told, _ = await gateway.read()
    assert status == 200
    assert json.loads(told) == answer("a \U0001f600 and half of one: \ufffd")


async def test_an_answer_is_relayed_unchanged_and_settled_with_litellms_cost(gateway: Gateway) -> None:
    body = json.dumps(answer(prompt=9, completion=3), indent=2).encode()
    gateway.double.script("double", Script.json(body, x_litellm_response_cost="0.00123"))
    status, got, headers = await gateway.read()
    assert (status, got, headers["Content-Type"]) == (200, body, "application/json")
    assert headers["x-ratelimit-limit-tokens"] == "2000"
    delivery = await gateway.budgets.wait_settled()
    assert delivery.usage == Usage(9, 3)
    assert delivery.response_cost == Decimal("0.00123")
    assert (delivery.outcome, delivery.stream, delivery.relayed_bytes) == ("success", False, 5)
    labels = {"model": "double", "purpose": "none", "service_type": "ai"}
    assert gateway.metric("chat_tokens_total", **labels, type="prompt") == 9
    assert gateway.metric("chat_completion_latency_seconds_count", **labels, result="success") == 1


async def test_usage_is_read_with_its_details(gateway: Gateway) -> None:
    body = answer(prompt=100, completion=50)
    body["usage"]["prompt_tokens_details"] = {"cached_tokens": 5, "cache_creation_tokens": 7}
    body["usage"]["completion_tokens_details"] = {"reasoning_tokens": 11}
    gateway.double.script("double", Script.json(body))
    await gateway.read()
    assert (await gateway.budgets.wait_settled()).usage == Usage(100, 50, 7, 11)


ERRORS = [
    # LiteLLM 1.84, between, 1.106: the same refusal under three statuses
    (400, error_body("Budget has been exceeded!", "budget_exceeded", "400"), {}, 429, "budget_exceeded"),
    (429, error_body("Budget has been exceeded!", "budget_exceeded", "429"), {}, 429, "budget_exceeded"),
    (422, error_body("ExceededBudget: End User=u", "budget_exceeded", "422"), {}, 429, "budget_exceeded"),
    (
        429,
        error_body("Rate limit exceeded", "throttling_error", "429"),
        {"rate_limit_type": "requests", "retry-after": "17"},
        429,
        "rate_limit_exceeded",
    ),
    (
        429,
        error_body("litellm.RateLimitError", "throttling_error", "429"),
        {"llm_provider-retry-after": "23"},
        429,
        "upstream_rate_limited",
    ),
    (429, error_body("No deployments available", None, "429"), {}, 429, "upstream_rate_limited"),
    (
        400,
        error_body("/chat/completions: Invalid model name passed in model=x. Call `/v1/models`", None, "400"),
        {},
        400,
        "invalid_model",
    ),
    (
        400,
        error_body("litellm.ContextWindowExceededError: litellm.BadRequestError: ...", "x", "400"),
        {},
        413,
        "request_too_large",
    ),
    (400, error_body("bad", "invalid_request_error", "context_length_exceeded"), {}, 413, "request_too_large"),
    (400, error_body("tools[0] is bad", "invalid_request_error", "400", "tools"), {}, 400, "invalid_request"),
    (408, error_body("litellm.Timeout", "timeout_error", "408"), {}, 504, "upstream_timeout"),
    (401, error_body("Authentication Error", "token_not_found_in_db", "401"), {}, 503, "unavailable"),
    (400, error_body("No connected db.", "no_db_connection", "400"), {}, 503, "unavailable"),
    (403, error_body("key not allowed", "key_model_access_denied", "403"), {}, 503, "unavailable"),
    (400, error_body("Budget exceeded! Key=k Current cost", "budget_exceeded", "400"), {}, 503, "unavailable"),
    (429, error_body("Budget has been exceeded! Current cost: 2.0", "budget_exceeded", "429"), {}, 503, "unavailable"),
    (429, error_body("ExceededBudget: Key over 1d budget.", "budget_exceeded", "429"), {}, 503, "unavailable"),
    (429, error_body("Budget exceeded! EndUser=Key=:ai", "budget_exceeded", "429"), {}, 429, "budget_exceeded"),
    (401, error_body("Incorrect API key", "invalid_request_error", "invalid_api_key"), {}, 502, "upstream_error"),
    (404, error_body("litellm.NotFoundError", None, "404"), {}, 502, "upstream_error"),
    (500, error_body("litellm.InternalServerError", None, "500"), {}, 502, "upstream_error"),
    (500, {"detail": "generate a throttled rate"}, {}, 502, "upstream_error"),
    (503, {"error": "oops"}, {}, 502, "upstream_error"),
    (503, {"error": "oops"}, {"retry-after": "9", "llm_provider-retry-after": "31"}, 502, "upstream_error"),
    (302, {}, {"Location": "http://127.0.0.1:1/"}, 502, "upstream_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "body", "headers", "expected", "code"), ERRORS)
async def test_an_error_of_litellm_is_mapped_and_costs_nothing(
    gateway: Gateway, stream: bool, status: int, body: Any, headers: dict[str, str], expected: int, code: str
) -> None:
    gateway.double.script("double", Script([("send", json.dumps(body).encode())], status, headers, "application/json"))
    got, answered, response = await gateway.read({"stream": stream})
    error = json.loads(answered)["error"]
    assert (got, error["code"]) == (expected, code)
    assert (await gateway.budgets.wait_settled()).refused
    assert response["x-ratelimit-limit-requests"] == "40"
    assert "litellm" not in error["message"].lower()
    if code == "upstream_rate_limited":
        assert response.get("Retry-After") == headers.get("llm_provider-retry-after")
    if code == "upstream_error":
        assert response.get("Retry-After") == ("31" if headers.get("retry-after") else None)
    if code == "unavailable":
        assert (response["Retry-After"], error["mlpa_code"]) == ("300", 10)
        assert sum(gateway.metric("litellm_key_refusals_total", reason=reason) for reason in KEY_REFUSALS) == 1
    if code == "rate_limit_exceeded":
        assert response["Retry-After"] == "17"
    if code == "budget_exceeded":
        assert response["x-should-retry"] == "false"
        assert int(response["Retry-After"]) >= 1
    else:
        assert response.get("x-should-retry") != "false"  # nothing was charged


async def test_a_200_with_an_error_object_is_an_error(gateway: Gateway) -> None:
    gateway.double.script("double", Script.json(error_body("slow down", "throttling_error", "429")))
    status, body, _ = await gateway.read()
    assert (status, json.loads(body)["error"]["code"]) == (429, "upstream_rate_limited")


@pytest.mark.parametrize(
    "steps", [[("send", b'{"choices": [')], [("send", b"{"), ("cut", None)], [("send", b"<html>")]]
)
async def test_a_damaged_answer_is_a_502_that_is_not_to_be_retried(gateway: Gateway, steps: list[Any]) -> None:
    gateway.double.script("double", Script(steps, content_type="application/json"))
    status, _, headers = await gateway.read()
    assert (status, headers["x-should-retry"]) == (502, "false")
    delivery = await gateway.budgets.wait_settled()
    assert (delivery.sent, delivery.refused, delivery.usage) == (True, False, None)


async def test_a_refused_admission_asks_nobody(gateway: Gateway) -> None:
    gateway.budgets.refuse = BudgetReserved(retry_after=1)
    gateway.budgets.refuse.headers["x-ratelimit-limit-requests"] = "40"
    status, body, headers = await gateway.read()
    assert (status, json.loads(body)["error"]["mlpa_code"], headers["Retry-After"]) == (429, 2, "1")
    assert headers["x-ratelimit-limit-requests"] == "40"
    assert gateway.double.asked == []
    assert gateway.metric("chat_request_rejections_total", model="double", reason="budget_reserved") == 1


@pytest.mark.parametrize("dependency", ["redis", "postgres"])
async def test_a_dependency_that_is_down_counts_as_unavailable(gateway: Gateway, dependency: str) -> None:
    gateway.budgets.refuse = DependencyUnavailable(dependency)
    status, body, _ = await gateway.read()
    assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
    assert gateway.metric("chat_request_rejections_total", model="double", reason="unavailable") == 1
    assert gateway.metric("chat_availability_total", outcome="failure", reason="unavailable") == 1
    assert gateway.metric("chat_availability_total", outcome="failure", reason="server_error") == 0


async def test_nothing_is_charged_when_litellm_cannot_be_reached(double: LiteLLMDouble, unused_port: int) -> None:
    upstream = upstream_at(f"http://127.0.0.1:{unused_port}")
    async with Gateway(double, upstream).running() as gateway:
        status, _, headers = await gateway.read()
        assert status == 502
        assert "x-should-retry" not in headers
        assert not (await gateway.budgets.wait_settled()).sent


async def test_a_connection_that_litellm_closed_while_idle_is_not_used(gateway: Gateway) -> None:
    for _ in range(5):
        assert (await gateway.read())[0] == 200
        server = gateway.double._runner.server
        assert server is not None
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.close()
    assert len(gateway.budgets.settled) == 5


class TestHealth:
    @pytest.fixture
    async def gateway(self, double: Any) -> Any:
        upstream = upstream_at(double.url, health_interval=0.02, health_timeout=0.5)
        async with Gateway(double, upstream).running() as gateway:
            yield gateway

    @pytest.fixture
    async def second(self) -> Any:
        async with LiteLLMDouble() as second:
            yield second

    async def test_chats_that_are_answered_outweigh_failed_checks(self, gateway: Gateway) -> None:
        gateway.double.healthy = False
        await until(lambda: not gateway.litellm.healthy)
        for _ in range(5):
            assert (await gateway.read())[0] == 200
        await gateway.read()
        assert gateway.litellm.healthy

    async def test_an_error_of_whatever_stands_before_it_is_no_sign_of_life(self, gateway: Gateway) -> None:
        gateway.double.healthy = False
        gateway.double.script("double", Script.json({"error": {}}, status=503))
        await until(lambda: not gateway.litellm.healthy)
        for _ in range(5):
            await gateway.read()
            assert not gateway.litellm.healthy

    async def test_when_all_instances_look_dead_32_requests_each_are_tried_and_the_rest_get_503(
        self, double: LiteLLMDouble, second: LiteLLMDouble
    ) -> None:
        late = Script([("send", json.dumps(answer()).encode())], first=[("gate", "go")])
        upstream = upstream_at(double.url, second.url, health_interval=0.02)
        async with Gateway(double, upstream).running() as gateway:
            for one in (double, second):
                one.healthy = False
                one.script("double", late)
            await until(lambda: not gateway.litellm.healthy)
            tried = [asyncio.create_task(gateway.read()) for _ in range(2 * MAX_TRIED)]
            await until(lambda: len(double.asked) == len(second.asked) == MAX_TRIED)
            status, body, headers = await gateway.read()
            assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")
            assert headers["Retry-After"]
            assert len(gateway.budgets.asks) == 2 * MAX_TRIED, "the refused one was admitted"
            tried.pop().cancel()  # a client that leaves makes room for the next
            await until(lambda: gateway.litellm.accepts)
            for one in (double, second):
                one.open_gate("go")
            assert {result[0] for result in await asyncio.gather(*tried)} == {200}
            assert [instance.tried for instance in gateway.litellm.balancer.instances] == [0, 0]

    async def test_it_is_back_when_its_checks_pass(self, gateway: Gateway) -> None:
        gateway.double.healthy = False
        await until(lambda: not gateway.litellm.healthy)
        gateway.double.healthy = True
        await until(lambda: gateway.litellm.healthy)
        assert (await gateway.read())[0] == 200


async def test_only_the_contracts_parameters_go_on(gateway: Gateway) -> None:
    extra = {
        "user": "someone-else",
        "metadata": {"a": 1},
        "api_base": "http://evil",
        "mock_response": "x",
        "fallbacks": ["x"],
        "service_tier": "priority",
        "web_search_options": {},
        "seed": 7,
        "reasoning_effort": "low",
    }
    await gateway.read(extra, headers={"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "Cookie": "a=b"})
    asked = gateway.double.asked[0]
    assert asked.body == {
        "model": "double",
        "messages": [{"role": "user", "content": "Hi"}],
        "seed": 7,
        "reasoning_effort": "low",
        "max_completion_tokens": 8192,
        "user": "uid:ai",
        "stream": False,
    }
    assert asked.headers["Authorization"] == "Bearer sk-virtual"
    assert asked.headers["Accept-Encoding"] == "identity"
    assert asked.headers["traceparent"].startswith("00-")
    assert asked.headers["X-Request-ID"]
    assert "Cookie" not in asked.headers
