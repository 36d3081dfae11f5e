"""Prices from LiteLLM's ``/model/info`` and the ``[[model]]`` rows: the dearest that can apply, or no service."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest

from services.gateway.budget.metrics import CatalogueMetrics
from services.gateway.budget.price_fields import Unpriced, read
from services.gateway.budget.prices import Catalogue, PricedModel, parse, price_all
from shared.errors import DependencyUnavailable
from shared.metrics import Registry
from shared.service_types import ModelRow
from tests.services.gateway.budget.support import until

SONNET = {
    "input_cost_per_token": "3e-06",
    "output_cost_per_token": "1.5e-05",
    "cache_creation_input_token_cost": "3.75e-06",
    "cache_creation_input_token_cost_above_1hr": "6e-06",
    "cache_read_input_token_cost": "3e-07",
    "input_cost_per_token_above_200k_tokens": "6e-06",
    "output_cost_per_token_above_200k_tokens": "2.25e-05",
    "cache_creation_input_token_cost_above_200k_tokens": "7.5e-06",
    "cache_creation_input_token_cost_above_1hr_above_200k_tokens": "1.2e-05",
    "input_cost_per_token_batches": "1.5e-06",
    "search_context_cost_per_query": {"search_context_size_low": "0.01"},
    "max_input_tokens": 1_000_000,
    "supports_reasoning": None,
}

SIMPLE = {"input_cost_per_token": "1e-6", "output_cost_per_token": "1e-6"}


def entry(name: str = "m", params: dict[str, Any] | None = None, **info: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": "openai/m", **(params or {})}, "model_info": info}


def priced(*entries: dict[str, Any], rows: dict[str, ModelRow] | None = None) -> PricedModel:
    models, refused = price_all(entries, rows or {})
    assert not refused, refused
    return models["m"]


def test_the_dearest_field_of_each_side_is_the_price() -> None:
    model = priced(entry(**SONNET))
    assert (model.input_price, model.output_price) == (Decimal("1.2e-05"), Decimal("2.25e-05"))
    assert model.context_window == 1_000_000
    assert [(rate.above, rate.input, rate.output, rate.cache_write) for rate in model.rates] == [
        (0, 3000, 15_000, 6000),
        (200_000, 6000, 22_500, 12_000),
    ]


def test_reasoning_has_a_price_and_a_least_of_its_own() -> None:
    model = priced(
        entry(
            input_cost_per_token="1e-6", output_cost_per_token="2e-6", output_cost_per_reasoning_token="3e-6",
            supports_reasoning=True,
        )
    )  # fmt: skip
    assert model.output_price == Decimal("3e-6")
    assert model.reasoning
    assert model.min_completion_tokens == 1024


def test_prices_are_decimals_as_they_are_written() -> None:
    """0.1 + 0.2: a float would already be another price."""
    body = json.dumps({"data": [entry(input_cost_per_token=1.0416e-08, output_cost_per_token=7e-7)]}).encode()
    model = priced(*parse(body))
    assert model.input_price == Decimal("1.0416e-08")
    assert (model.scale, model.input_units) == (1000, 10_416)


@pytest.mark.parametrize(
    "field", ["input_cost_per_smell", "cost_of_everything", "weekend_pricing", "output_cost_per_token_midnight"]
)
def test_a_price_field_that_nobody_knows_refuses_the_model(field: str) -> None:
    entries = [entry(**SONNET, **{field: "1e-6"})]
    models, refused = price_all(entries, {})
    assert models == {}
    assert refused == {"m": f"unknown price field {field}"}
    row = ModelRow("m", Decimal("1e-6"), Decimal("2e-6"))
    assert priced(*entries, rows={"m": row}).input_price == Decimal("1e-6")


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({}, "no input_cost_per_token"),
        ({"input_cost_per_token": 0, "output_cost_per_token": 0}, "no input_cost_per_token"),
        ({**SIMPLE, "output_cost_per_token": 0}, "no output_cost_per_token"),
        ({**SIMPLE, "input_cost_per_token": "cheap"}, "input_cost_per_token is not a number"),
        ({**SIMPLE, "input_cost_per_token": "-1"}, "input_cost_per_token is not a price"),
        ({**SIMPLE, "input_cost_per_token": "NaN"}, "input_cost_per_token is not a price"),
        ({**SIMPLE, "output_cost_per_token": "1e-90"}, "output_cost_per_token is not a price"),
        ({**SIMPLE, "tiered_pricing": ["x"]}, "tiered_pricing is not a table"),
    ],
)  # fmt: skip
def test_a_model_without_a_price_is_refused(info: dict[str, Any], reason: str) -> None:
    """LiteLLM says 0 where it knows no price."""
    with pytest.raises(Unpriced, match=reason):
        read(entry(**info))


def test_a_zero_that_the_operator_wrote_is_a_price() -> None:
    zero = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0}
    model = priced(entry(params=zero, **zero))
    assert (model.input_price, model.output_price) == (0, 0)


def test_the_operators_price_counts_when_it_is_dearer_than_the_map() -> None:
    model = priced(
        entry(params={"input_cost_per_token": 9e-6}, input_cost_per_token="1e-6", output_cost_per_token="1e-6")
    )
    assert model.input_price == Decimal("9e-6")


def test_service_tiers_count_only_where_one_is_asked_for() -> None:
    fields = {"input_cost_per_token": "1e-6", "output_cost_per_token": "2e-6", "input_cost_per_token_priority": "5e-6"}
    assert priced(entry(**fields)).input_price == Decimal("1e-6")
    assert priced(entry(params={"service_tier": "priority"}, **fields)).input_price == Decimal("5e-6")


def test_tables_of_prices_are_read() -> None:
    table = [
        {"range": [0, 256_000], "input_cost_per_token": 5e-8, "output_cost_per_token": 4e-7},
        {"range": [256_000, 10**6], "input_cost_per_token": 2.5e-7, "output_cost_per_token": 2e-6},
    ]
    model = priced(entry(tiered_pricing=table))
    assert (model.input_price, model.output_price) == (Decimal("2.5e-7"), Decimal("2e-6"))
    assert [(rate.above, rate.input) for rate in model.rates] == [(0, 50), (256_000, 250)]


def test_uplifts_and_fees_per_request_are_reserved() -> None:
    model = priced(
        entry(
            input_cost_per_token="1e-6", output_cost_per_token="2e-6", input_cost_per_request="0.005",
            regional_processing_uplift_multiplier_eu=1.1,
        )
    )  # fmt: skip
    assert model.input_price == Decimal("1.1e-6")
    assert model.request_units == 5_500_000
    search = {"search_context_size_low": 0.005, "search_context_size_high": 0.012}
    sonar = entry(
        input_cost_per_token="1e-6", output_cost_per_token="1e-6", litellm_provider="perplexity",
        search_context_cost_per_query=search,
    )  # fmt: skip
    assert priced(sonar).request_units == 12_000_000


def test_a_name_with_several_deployments_costs_what_the_dearest_does() -> None:
    cheap = entry(input_cost_per_token="1e-6", output_cost_per_token="9e-6", max_input_tokens=100)
    dear = entry(input_cost_per_token="2e-6", output_cost_per_token="3e-6", max_input_tokens=50)
    model = priced(cheap, dear)
    assert (model.input_price, model.output_price) == (Decimal("2e-6"), Decimal("9e-6"))
    assert model.context_window == 50
    models, refused = price_all([cheap, entry()], {})
    assert (models, list(refused)) == ({}, ["m"])


def test_a_row_replaces_a_side_and_sets_the_rest() -> None:
    row = ModelRow("m", Decimal("5e-7"), None, min_completion_tokens=99, prompt_bytes_per_token=3, reasoning=True)
    model = priced(entry(**SONNET), rows={"m": row})
    assert (model.input_price, model.output_price) == (Decimal("5e-7"), Decimal("2.25e-05"))
    assert (model.min_completion_tokens, model.prompt_bytes_per_token, model.reasoning) == (99, 3, True)


@pytest.mark.parametrize(("reasoning", "least"), [(True, 1024), (False, 16)])
def test_the_least_grant_of_a_row_goes_by_the_kind_of_its_model(reasoning: bool, least: int) -> None:
    row = ModelRow("m", Decimal("5e-7"), Decimal("5e-7"), reasoning=reasoning)
    assert priced(entry(), rows={"m": row}).min_completion_tokens == least


def test_a_row_names_a_model_behind_a_wildcard() -> None:
    row = ModelRow("local/llama", Decimal(0), Decimal(0))
    models, refused = price_all([entry("local/*"), entry("other/*")], {"local/llama": row, "nowhere/x": row})
    assert list(models) == ["local/llama"]
    assert refused == {}


class Source:
    """LiteLLM as the catalogue sees it."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)

    async def fetch(self) -> bytes:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def body(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"data": entries}).encode()


async def test_the_catalogue_is_read_again_and_keeps_what_it_has() -> None:
    first = body(entry("a", input_cost_per_token=1e-6, output_cost_per_token=1e-6), entry("b"))
    second = body(entry("b", input_cost_per_token=1e-6, output_cost_per_token=1e-6))
    source = Source(DependencyUnavailable("litellm"), first, OSError("gone"), b"<html>", b"[]", second)
    registry = Registry()
    async with Catalogue.open(source.fetch, {}, CatalogueMetrics(registry), every=0.01, retry=0.01) as catalogue:
        assert not catalogue.loaded
        assert catalogue.get("a") is None

        async def has(name: str) -> bool:
            return catalogue.get(name) is not None

        await until(lambda: has("a"))
        assert catalogue.loaded
        assert catalogue.names() == ("a",)
        assert b'model_refused{model="b"} 1' in registry.render()
        await until(lambda: has("b"))
        assert catalogue.names() == ("b",)
        assert b'model_refused{model="b"} 0' in registry.render()
        assert len(source.answers) == 1
        await asyncio.sleep(0)
