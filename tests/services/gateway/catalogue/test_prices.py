"""Prices from LiteLLM's ``/model/info`` and the ``[[model]]`` rows: the dearest that can apply, or no service."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from services.gateway.budget.charging import bounds, charge
from services.gateway.budget.models import Delivery, Usage
from services.gateway.catalogue import model_info
from services.gateway.catalogue.metrics import CatalogueMetrics
from services.gateway.catalogue.price_fields import Unpriced, read
from services.gateway.catalogue.prices import PricedModel, price_all
from services.gateway.catalogue.services import Catalogue
from shared.domain.service_types import ModelRow, ServiceTypes
from shared.errors import DependencyUnavailable
from shared.telemetry.metrics import Registry
from tests.services.gateway.budget.support import ask
from tests.support.waiting import until

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
    assert (model.context_window, model.request_units) == (1_000_000, 0)
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
    entries, unreadable = model_info.read(body)
    assert not unreadable
    model = priced(*entries)
    assert model.input_price == Decimal("1.0416e-08")
    assert (model.scale, model.input_units) == (1000, 10_416)


def test_the_finest_price_decides_the_unit_though_it_is_not_the_dearest() -> None:
    model = priced(
        entry(
            input_cost_per_token="1.5e-9", input_cost_per_token_above_128000_tokens="3e-9", output_cost_per_token="2e-9"
        )
    )  # fmt: skip
    assert (model.scale, model.input_units, model.output_units) == (10, 30, 20)
    assert [(rate.above, rate.input, rate.reasoning) for rate in model.rates] == [(0, 15, 20), (128_000, 30, 20)]
    assert charge(ask(model=model), 1, Delivery("success", sent=True, usage=Usage(3, 0))).cost_nano == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"input_cost_per_token_batches": "9e-6"},
        {"input_cost_per_token_batches_priority": "9e-6"},
        {"input_cost_per_audio_token": "9e-6"},
        {"input_cost_per_token_above_200k_tokens": None},
        {"regional_multiplier": None},
        {"search_context_cost_per_query": {"low": "9e-6"}},
        {"litellm_provider": "perplexity"},
    ],
)
def test_what_no_request_of_ours_costs_counts_for_nothing(fields: dict[str, Any]) -> None:
    model = priced(entry(**SIMPLE, **fields))
    assert (model.input_price, model.request_units) == (Decimal("1e-6"), 0)


@pytest.mark.parametrize("price", ["999999", "1e-24", "0." + "1" * 28, "0"])
def test_the_outermost_prices_are_prices(price: str) -> None:
    assert read(entry(**SIMPLE, output_cost_per_image_token=price)).output == max(Decimal(price), Decimal("1e-6"))


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
        ({**SIMPLE, "output_cost_per_token": "9e-25"}, "output_cost_per_token is not a price"),
        ({**SIMPLE, "output_cost_per_token": "1000000"}, "output_cost_per_token is not a price"),
        ({**SIMPLE, "input_cost_per_token": True}, "input_cost_per_token is not a number"),
        ({**SIMPLE, "input_cost_per_token": ["1e-6"]}, "input_cost_per_token is not a number"),
        ({**SIMPLE, "input_cost_per_token": "0." + "1" * 29}, "input_cost_per_token is not a price"),
        ({**SIMPLE, "tiered_pricing": ["x"]}, "tiered_pricing is not a table"),
        ({**SIMPLE, "tiered_pricing": [{"range": 5}]}, "tiered_pricing has a range that is not a list"),
        ({**SIMPLE, "tiered_pricing": [{"range": {"from": 5}}]}, "tiered_pricing has a range that is not a list"),
        ({**SIMPLE, "tiered_pricing": [{"range": [None]}]}, "tiered_pricing is not a number"),
        ({**SIMPLE, "key": "search", "search_context_cost_per_query": 0.03}, "search_context_cost_per_query is not"),
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
    for usual in ("default", "standard"):
        assert priced(entry(params={"service_tier": usual}, **fields)).input_price == Decimal("1e-6")


def test_tables_of_prices_are_read() -> None:
    table = [
        {"range": [0, 256_000], "input_cost_per_token": 5e-8, "output_cost_per_token": 4e-7},
        {"range": [256_000, 10**6], "input_cost_per_token": 2.5e-7, "output_cost_per_token": 2e-6},
    ]
    model = priced(entry(tiered_pricing=table))
    assert (model.input_price, model.output_price) == (Decimal("2.5e-7"), Decimal("2e-6"))
    assert [(rate.above, rate.input) for rate in model.rates] == [(0, 50), (256_000, 250)]
    model = priced(entry(**SIMPLE, off_peak_pricing={"input_cost_per_token": "3e-6"}))
    assert [(rate.above, rate.input, rate.output) for rate in model.rates] == [(0, 3000, 1000)]


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
    searches = entry(**SIMPLE, key="gpt-search", search_context_cost_per_query=search)
    assert priced(searches, entry(**SIMPLE, input_cost_per_request="0.001")).request_units == 12_000_000


def test_a_name_with_several_deployments_costs_what_the_dearest_does() -> None:
    cheap = entry(input_cost_per_token="1e-6", output_cost_per_token="9e-6", max_input_tokens=100)
    dear = entry(input_cost_per_token="2e-6", output_cost_per_token="3e-6", max_input_tokens=50)
    model = priced(cheap, dear)
    assert (model.input_price, model.output_price) == (Decimal("2e-6"), Decimal("9e-6"))
    assert model.context_window == 50
    models, refused = price_all([cheap, entry()], {})
    assert (models, list(refused)) == ({}, ["m"])


def test_a_token_of_several_deployments_costs_the_dearest_of_each_field_at_each_length() -> None:
    """Any deployment may have answered a stream, and the bill is that deployment's."""
    first = entry(
        input_cost_per_token="1e-6", output_cost_per_token="10e-6", output_cost_per_reasoning_token="11e-6",
        input_cost_per_token_above_200k_tokens="3e-6",
    )  # fmt: skip
    second = entry(
        input_cost_per_token="5e-6", output_cost_per_token="9e-6", cache_creation_input_token_cost="6e-6",
        output_cost_per_token_above_128k_tokens="12e-6",
    )  # fmt: skip
    for deployments in ((first, second), (second, first)):
        rates = priced(*deployments).rates
        assert [(rate.above, rate.input, rate.output, rate.cache_write, rate.reasoning) for rate in rates] == [
            (0, 5000, 10_000, 6000, 11_000),
            (128_000, 5000, 12_000, 6000, 12_000),
            (200_000, 5000, 12_000, 6000, 12_000),
        ]


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        ([["max_tokens"]], "max_tokens"),
        ([["max_completion_tokens", "max_tokens"]], "max_tokens"),
        ([["temperature", "max_completion_tokens"]], "max_completion_tokens"),
        ([["max_tokens", "max_completion_tokens"], ["max_completion_tokens"]], "max_completion_tokens"),
        ([None], "max_completion_tokens"),
        (["max_tokens"], "max_completion_tokens"),
        ([None, ["max_tokens"]], "max_tokens"),
        ([["temperature"]], None),
        ([[]], None),
        ([["max_tokens"], ["max_completion_tokens"]], None),
    ],
)
def test_the_completion_limit_has_the_name_that_every_deployment_takes(listed: list[Any], name: str | None) -> None:
    """LiteLLM drops a name that a provider doesn't take, and the model answers without a limit."""
    entries = [
        entry(input_cost_per_token="1e-6", output_cost_per_token="1e-6", supported_openai_params=names)
        for names in listed
    ]
    models, refused = price_all(entries, {})
    assert (models["m"].limit_name if models else None) == name
    assert ("completion limit" in refused.get("m", "")) == (name is None)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"model": "zai/glm-new"}, "max_tokens"),
        ({"model": "bedrock/qwen.qwen3-new"}, "max_tokens"),
        ({"model": "glm-new", "custom_llm_provider": "zai"}, "max_tokens"),
        ({"model": "openai/zai"}, "max_completion_tokens"),
        ({"model": "zai/glm", "custom_llm_provider": "openai"}, "max_completion_tokens"),
        ({"model": 5, "custom_llm_provider": ["zai"]}, "max_completion_tokens"),
        ({"model": "morph/new"}, None),
    ],
)
def test_the_limit_of_a_model_that_litellm_does_not_know_has_the_name_that_its_provider_takes(
    params: dict[str, Any], name: str | None
) -> None:
    given = entry(input_cost_per_token="1e-6", output_cost_per_token="1e-6")
    models, refused = price_all([{**given, "litellm_params": {**given["litellm_params"], **params}}], {})
    assert (models["m"].limit_name if models else None) == name
    assert ("completion limit" in refused.get("m", "")) == (name is None)


def test_a_row_of_a_wildcard_has_the_wildcards_name_for_the_completion_limit() -> None:
    row = ModelRow("zai/glm", Decimal("1e-6"), Decimal("1e-6"))
    for names, expected in ((["max_tokens"], "max_tokens"), (["stop"], None)):
        wildcard = {**entry(supported_openai_params=names), "model_name": "zai/*"}
        models, _ = price_all([wildcard], {row.name: row})
        assert [model.limit_name for model in models.values()] == ([expected] if expected else [])


def test_a_model_answers_no_more_than_each_of_its_deployments_can() -> None:
    for sizes, most in (
        ([4096], 4096), ([4096, 100], 100), ([None, 100], 100), ([None], None),
        (["4096"], None), ([0], None), ([-1], None), ([True], None), ([{"a": 1}], None),
    ):  # fmt: skip
        models, _ = price_all([entry(**SIMPLE, max_output_tokens=size, max_input_tokens=size) for size in sizes], {})
        assert (models["m"].max_output_tokens, models["m"].context_window) == (most, most)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "x" * 257, "a\u200bb", "a\u00a0b"])
def test_a_model_that_nobody_could_ask_for_is_not_listed(name: str) -> None:
    entries, refused = model_info.read(json.dumps({"data": [entry(name, **SIMPLE), entry(**SIMPLE)]}).encode())
    assert ([served["model_name"] for served in entries], list(refused.values())) == (["m"], [NO_NAME])


PRICES = st.sampled_from(["1e-7", "3e-6", "2e-5"])
BASES = ("input_cost_per_token", "output_cost_per_token")
FURTHER = (*BASES, "cache_creation_input_token_cost", "output_cost_per_reasoning_token")
DEPLOYMENT = st.fixed_dictionaries(
    dict.fromkeys(BASES, PRICES),
    optional={
        f"{base}{threshold}": PRICES
        for base in FURTHER
        for threshold in ("", "_above_128k_tokens", "_above_200k_tokens")
        if threshold or base not in BASES
    },
)


@given(
    st.lists(DEPLOYMENT, min_size=1, max_size=4), st.integers(0, 300_000), st.integers(0, 1000), st.integers(0, 1000)
)
def test_no_deployment_is_dearer_than_what_is_charged(
    deployments: list[dict[str, str]], prompt: int, written: int, reasoned: int
) -> None:
    models, _ = price_all([entry(**fields) for fields in deployments], {})
    delivery = Delivery("success", sent=True, usage=Usage(prompt, 1000, written, reasoned))
    charged = charge(ask(model=models["m"]), 1000, delivery).cost_nano
    for fields in deployments:
        alone = price_all([entry(**fields)], {})[0]["m"]
        assert charge(ask(model=alone), 1000, delivery).cost_nano <= charged
        assert alone.input_price <= models["m"].input_price
        assert all(rate.output <= models["m"].output_units for rate in models["m"].rates)


NAME = st.text(max_size=9) | st.sampled_from(["range", "input_cost", "key"])
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["1e-6", "", "0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=8,
)
PART = ODD | st.dictionaries(
    st.sampled_from(
        [
            "input_cost_per_token", "output_cost_per_token", "tiered_pricing", "off_peak_pricing", "service_tier",
            "search_context_cost_per_query", "litellm_provider", "key", "max_input_tokens", "supports_reasoning",
            "regional_multiplier", "cost\ud83d", "input_cost_per_token_above_200k_tokens", "pricing_overrides",
        ]
    ),
    ODD,
)  # fmt: skip
ENTRY = ODD | st.fixed_dictionaries(
    {}, optional={"model_name": st.just("odd") | ODD, "model_info": PART, "litellm_params": PART}
)
ROW = ModelRow("odd", Decimal("1e-6"), None)


@given(st.lists(ENTRY, max_size=3), st.sampled_from([{}, {"odd": ROW}, {"odd": replace(ROW, output_cost_per_token=0)}]))
def test_an_entry_of_any_shape_hides_no_other_model(odd: list[Any], rows: dict[str, ModelRow]) -> None:
    good = entry(input_cost_per_token="1e-6", output_cost_per_token="1e-6")
    entries, unreadable = model_info.read(json.dumps({"data": [*odd, good]}).encode())
    models, refused = price_all(entries, rows, unreadable)
    assert "m" in models
    registry = Registry()
    CatalogueMetrics(registry).show(len(models), refused)
    registry.render()
    bounds(ask(model=models["m"], prompt_bound=10, limit=10, n=1), 10**9)
    assert all(reason.isascii() and name.isascii() for name, reason in refused.items())


NO_NAME = "its model_name is not 1 to 256 printable characters without spaces"
TOO_DEEP = "can't be read (RecursionError)"


@pytest.mark.parametrize(
    ("raw", "refused"),
    [
        (b'{"model_name":"odd","model_info":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {"odd": TOO_DEEP}),
        (b'{"model_info":' + b'{"a":' * 100_000 + b'"\\"]}"' + b"}" * 100_001, {"entry 1": TOO_DEEP}),
        (b'{"model_name":"odd","model_info":{"key":' + b"9" * 5000 + b"}}", {"odd": "can't be read (ValueError)"}),
        (b'{"model_name":"m","model_info":{"key":' + b"9" * 5000 + b"}}", {"m": "can't be read (ValueError)"}),
        (b'{"model_name":"\\ud83d"}', {"\\ud83d": NO_NAME}),
        (b'{"model_name":"two words"}', {"two words": NO_NAME}),
        (
            b'{"model_name":"odd","model_info":{"input_cost_per_token":NaN}}',
            {"odd": "input_cost_per_token is not a price"},
        ),
        (b'{"model_name":"odd","model_info":"free text"}', {"odd": "model_info is not an object"}),
        (b'{"model_name":"m","litellm_params":[]}', {"m": "litellm_params is not an object"}),
        (b"[]", {"entry 1": NO_NAME}),
    ],
    ids=range(10),
)
def test_a_bad_entry_is_refused_by_name_and_reason(raw: bytes, refused: dict[str, str]) -> None:
    """One deployment that is not understood refuses its name: it may be the one that answers."""
    good = [json.dumps(entry(name, **SIMPLE)).encode() for name in ("m", 'a"],{}')]
    document = b'{"object":"list","data":[' + b" , ".join([raw, *good]) + b'],"more":{"data":1}}'
    entries, unreadable = model_info.read(document)
    models, found = price_all(entries, {}, unreadable)
    assert found == refused
    assert set(models) == {"m", 'a"],{}'} - refused.keys()


def test_a_row_replaces_a_side_and_sets_the_rest() -> None:
    row = ModelRow(
        "m", Decimal("5e-7"), None, min_completion_tokens=99, prompt_bytes_per_token=3, max_tokens_per_image=7,
        reasoning=True,
    )  # fmt: skip
    params = {"input_cost_per_token": "9e-3", "output_cost_per_token": "4e-5"}
    model = priced(entry(params=params, **SONNET), rows={"m": row})
    assert (model.input_price, model.output_price) == (Decimal("5e-7"), Decimal("4e-05"))
    assert (model.min_completion_tokens, model.prompt_bytes_per_token, model.reasoning) == (99, 3, True)
    assert (model.max_tokens_per_image, model.context_window) == (7, 1_000_000)
    row = ModelRow("m", None, Decimal("5e-7"))
    model = priced(entry(**SONNET), rows={"m": row})
    assert (model.input_price, model.output_price) == (Decimal("1.2e-05"), Decimal("5e-7"))
    model = priced(entry(**SONNET), entry("*"), rows={"m": replace(row, input_cost_per_token=Decimal("2e-7"))})
    assert model.context_window == 1_000_000, "it is not one of a wildcard's"
    (rate,) = model.rates
    assert (rate.above, rate.input, rate.output, rate.cache_write, rate.reasoning) == (0, 200, 500, 200, 500)


@pytest.mark.parametrize(("reasoning", "least"), [(True, 1024), (False, 16)])
def test_the_least_grant_of_a_row_goes_by_the_kind_of_its_model(reasoning: bool, least: int) -> None:
    row = ModelRow("m", Decimal("5e-7"), Decimal("5e-7"), reasoning=reasoning)
    assert priced(entry(), rows={"m": row}).min_completion_tokens == least


def test_a_row_names_a_model_behind_a_wildcard() -> None:
    row = ModelRow("local/llama", Decimal(0), Decimal(0))
    models, refused = price_all([entry("local/*"), entry("other/*")], {"local/llama": row, "nowhere/x": row})
    assert list(models) == ["local/llama"]
    assert refused == {}
    assert price_all([entry("m*")], {"m": ModelRow("m", Decimal(0), None)}) == ({}, {"m": "no price"})


def test_a_model_that_is_switched_off_is_neither_priced_nor_refused() -> None:
    assert price_all([entry()], {"m": ModelRow("m", None, None, enabled=False)}) == ({}, {})


def test_a_model_reasons_if_one_of_its_deployments_does() -> None:
    assert priced(entry(**SIMPLE), entry(**SIMPLE, supports_reasoning=True)).reasoning


class Source:
    """LiteLLM as the catalogue sees it."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)

    async def fetch(self) -> bytes:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def body(*entries: Any) -> bytes:
    return json.dumps({"data": entries}).encode()


async def test_the_catalogue_is_read_again_and_keeps_what_it_has() -> None:
    first = body(entry("a", input_cost_per_token=1e-6, output_cost_per_token=1e-6), entry("b"))
    odd = {"model_name": "a", "model_info": {"tiered_pricing": [{"range": 5}]}}
    second = body("free text", odd, entry("b", input_cost_per_token=1e-6, output_cost_per_token=1e-6))
    source = Source(DependencyUnavailable("litellm"), first, OSError("gone"), b"<html>", b"[]", RuntimeError(), second)
    registry = Registry()
    changes: list[tuple[str, ...]] = []
    opened = Catalogue.open(
        source.fetch, ServiceTypes({}, {}), registry, every=0.01, retry=0.01, on_change=changes.append
    )
    async with opened as catalogue:
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
        assert changes == [("a",), ("b",)]
        await asyncio.sleep(0)


EMBEDDING = {"mode": "embedding", "input_cost_per_token": "2e-8", "output_cost_per_token": 0}


def test_embeddings_are_paid_by_their_input_alone() -> None:
    model = priced(entry(**EMBEDDING, supported_openai_params=["dimensions", "encoding_format"]))
    assert (model.embedding, model.input_price, model.output_price) == (True, Decimal("2e-8"), 0)
    assert not priced(entry(**SIMPLE)).embedding
    assert not priced(entry(**SIMPLE, mode="chat")).embedding
    row = ModelRow("m", Decimal("1e-7"), Decimal(0))
    served = entry("*", params={"model": "openai/*"}, **EMBEDDING)
    assert priced(served, rows={"m": row}).embedding, "a wildcard's mode is that of the models behind it"
    models, refused = price_all([entry(mode="embedding", output_cost_per_token="1e-6")], {})
    assert (models, refused) == ({}, {"m": "no input_cost_per_token"})


def test_a_model_has_the_largest_vectors_of_its_deployments() -> None:
    assert priced(entry(**EMBEDDING)).vector_size is None
    assert priced(entry(**EMBEDDING, output_vector_size=0)).vector_size is None
    sizes: list[Any] = [1536, 3072, "4096", True, -1]
    assert priced(*(entry(**EMBEDDING, output_vector_size=size) for size in sizes)).vector_size == 3072


def test_a_name_for_embeddings_and_for_chat_is_refused() -> None:
    models, refused = price_all([entry(**SIMPLE), entry(**EMBEDDING)], {})
    assert (models, refused) == ({}, {"m": "makes embeddings in some of its deployments alone"})


@pytest.mark.parametrize(
    ("served", "decodes"),
    [
        (["openai/text-embedding-3-small"], False),
        (["azure/embeddings", "text-embedding-ada-002"], False),
        (["cohere/embed-english-v3.0"], True),
        (["openai/text-embedding-3-small", "vertex_ai/text-embedding-004"], True),
        ([None], True),
    ],
)
def test_a_model_says_whether_litellm_turns_tokens_into_text(served: list[str | None], decodes: bool) -> None:
    model = priced(*(entry(params={"model": name}, **EMBEDDING) for name in served))
    assert model.decodes_tokens is decodes
