"""LiteLLM's routing facts are counted, and after a fallback its cost decides."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.doubles.litellm import Script, answer, stream_of
from tests.services.gateway.conftest import Gateway

FALLBACK = {"x-litellm-attempted-fallbacks": "1", "x-litellm-model-api-base": "https://other.example.com/v1"}


@pytest.mark.parametrize(
    ("headers", "cost"),
    [
        ({}, None),
        ({"x-litellm-attempted-retries": "2"}, None),
        (FALLBACK, Decimal("0.0001")),
        ({"x-litellm-response-cost": "0.5"}, Decimal("0.5")),
    ],
    ids=["its own model", "asked again", "another model", "told in the header"],
)
async def test_a_stream_costs_what_litellm_says_only_where_that_decides(
    gateway: Gateway, headers: dict[str, str], cost: Decimal | None
) -> None:
    gateway.double.script("double", Script.events(stream_of(["a"]), headers=headers))
    async with gateway.post({"stream": True}) as response:
        await response.read()
    assert (await gateway.budgets.wait_settled()).response_cost == cost


async def test_an_answer_of_a_fallback_costs_what_it_cost(gateway: Gateway) -> None:
    gateway.double.script("double", Script.json(answer(), **{**FALLBACK, "x-litellm-response-cost": "0.002"}))
    async with gateway.post() as response:
        await response.read()
    assert (await gateway.budgets.wait_settled()).response_cost == Decimal("0.002")
    text = gateway.registry.render().decode()
    for series in (
        'litellm_requests_total{backend="other.example.com"} 1',
        'litellm_fallbacks_total{model="double"} 1',
        'litellm_cost_usd_total{model="double"} 0.002',
    ):
        assert series in text
