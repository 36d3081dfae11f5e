"""What a request may cost and did cost, by the rules of PROTOCOL.md, section 5."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from math import ceil, floor

import msgspec
import pytest
from hypothesis import given, strategies as st

from services.gateway.budget.charging import EXACT, MOST, bounds, charge
from services.gateway.budget.models import Delivery, Usage, duration
from services.gateway.catalogue.price_fields import Prices, Rate
from services.gateway.catalogue.prices import PricedModel
from tests.services.gateway.budget.support import MODEL, ask

prices = st.builds(
    lambda digits, exponent: Decimal(digits).scaleb(exponent), st.integers(0, 10**6), st.integers(-18, -6)
)


@given(
    prices,
    prices,
    st.integers(0, 3 * 1024 * 1024),
    st.integers(1, 10**6),
    st.integers(1, 8),
    st.integers(0, 10**15),
    st.integers(0, 10**6),
)
def test_a_grant_between_the_bounds_is_paid_for_and_exact_where_doubles_allow(
    input_price: Decimal, output_price: Decimal, prompt: int, limit: int, n: int, budget: int, share: int
) -> None:
    """``share``: of what lies between the bounds, in millionths, that is available."""
    model = PricedModel("m", input_price, output_price)
    found = bounds(ask(model=model, prompt_bound=prompt, limit=limit, n=n), budget)

    def cost(grant: int) -> int:
        return ceil((prompt * input_price + grant * n * output_price) * 10**9)

    least = min(limit, 16)
    assert found.least_grant == least
    assert found.full == min(cost(limit), budget + 1)
    assert found.least == min(cost(least), budget + 1)
    if found.least >= found.full:
        return
    available = found.least + (found.full - 1 - found.least) * share // 10**6
    # what the script does, in doubles
    assert float(available) * float(found.scale) < EXACT
    grant = floor((float(available) * found.scale - found.prompt_units) / found.grant_units)
    if grant > least:
        amount = ceil((found.prompt_units + float(grant) * found.grant_units) / found.scale)
        assert cost(grant) <= amount <= available
        if found.scale == model.scale:
            assert amount == cost(grant)
            assert cost(grant + 1) > available
        assert grant < limit


@pytest.mark.parametrize("budget", [0, 1, 10**15])
def test_numbers_for_the_script_are_exact_in_doubles_whatever_the_prices(budget: int) -> None:
    model = PricedModel("m", Decimal("1.000000000000000000000000001e-7"), Decimal("1e-21"))
    assert model.scale > 2**64
    assert all(
        number <= EXACT
        for number in msgspec.structs.astuple(bounds(ask(model=model, prompt_bound=10, limit=100), budget))
    )


@pytest.mark.parametrize(
    ("budget", "scale", "prompt_units", "grant_units"),
    [
        (10**12, 1000, 10 * 10_416 + 1500, 2 * 777_100),
        (9 * 10**13, 100, 10 * 1042 + 150, 2 * 77_710),
        (10**15, 1, 10 * 11 + 2, 2 * 778),
    ],
)
def test_units_of_a_large_budget_are_coarser_and_their_prices_rounded_up(
    budget: int, scale: int, prompt_units: int, grant_units: int
) -> None:
    prices = Prices(Decimal("1.0416e-8"), Decimal("7.771e-7"), Decimal("1.5e-9"), ())
    model = PricedModel("m", prices.input, prices.output, prices=prices)
    found = bounds(ask(model=model, prompt_bound=10, limit=100, n=2), budget)
    assert (found.scale, found.prompt_units, found.grant_units) == (scale, prompt_units, grant_units)
    assert found.full == ceil((10 * 10_416 + 1500 + 200 * 777_100) / 1000)
    assert found.empty == ceil((1500 + 16 * 777_100) / 1000)


def test_no_unit_is_more_than_a_double_holds() -> None:
    model = PricedModel("m", Decimal("9e5"), Decimal("9e5"))
    found = bounds(ask(model=model, prompt_bound=10**6, limit=100, n=20), 10**15)
    assert (found.prompt_units, found.grant_units) == (EXACT - 1, EXACT - 1)


def test_nothing_is_charged_when_nothing_was_sent_or_litellm_refused() -> None:
    assert charge(ask(), 1000, Delivery("abort", sent=False)).cost_nano == 0
    refused = Delivery("error", sent=True, refused=True, usage=Usage(5, 5))
    assert charge(ask(), 1000, refused).cost_nano == 0


def test_usage_is_charged_at_the_models_prices() -> None:
    charged = charge(ask(), 1000, Delivery("success", sent=True, usage=Usage(10, 20)))
    assert msgspec.structs.astuple(charged) == (10 * 1000 + 20 * 2000, 10, 20, 30)


@pytest.mark.parametrize(
    ("given_cost", "expected"),
    [
        ("0.000123", 123_000),
        ("0.0000000011", 2),  # up, to whole nano-dollars
        ("0", 50_000),
        ("-1", 50_000),
        ("NaN", 50_000),
        ("Infinity", 50_000),
        ("1E+999999", MOST),
        (None, 50_000),
    ],
)
def test_litellms_own_cost_counts_when_it_is_above_zero(given_cost: str | None, expected: int) -> None:
    cost = Decimal(given_cost) if given_cost is not None else None
    delivery = Delivery("success", sent=True, usage=Usage(10, 20), response_cost=cost)
    assert charge(ask(), 1000, delivery).cost_nano == expected


def test_a_cut_stream_costs_its_prompt_bound_and_the_bytes_relayed() -> None:
    delivery = Delivery("abort", sent=True, relayed_bytes=50)
    charged = charge(ask(), 1000, delivery)
    assert msgspec.structs.astuple(charged) == (100 * 1000 + 50 * 2000, 100, 50, 25 + 13)
    assert charge(ask(), 30, delivery).cost_nano == 100 * 1000 + 30 * 2000, "never more than the grant"
    assert charge(ask(n=3), 30, delivery).completion_tokens == 50, "which is per choice"


@pytest.mark.parametrize("change", [{"stream": False}, {"reasoning": True}])
def test_what_nobody_saw_is_charged_by_the_grant(change: dict[str, bool]) -> None:
    """An answer in one piece, and reasoning, may have been made in full before the cut."""
    model = dataclasses.replace(MODEL, reasoning=change.get("reasoning", False))
    delivery = Delivery("abort", sent=True, relayed_bytes=50, stream=change.get("stream", True))
    assert charge(ask(model=model, n=2), 30, delivery).cost_nano == 100 * 1000 + 60 * 2000


@pytest.mark.parametrize(
    ("given_cost", "stream", "expected"),
    [("0.000123", False, 123_000), ("0.000123", True, 200_000), ("0", False, 160_000), ("NaN", False, 160_000)],
)
def test_a_whole_answer_that_was_not_read_costs_what_its_head_says(
    given_cost: str, stream: bool, expected: int
) -> None:
    delivery = Delivery("error", sent=True, response_cost=Decimal(given_cost), relayed_bytes=50, stream=stream)
    charged = charge(ask(), 30 if not stream else 50, delivery)
    assert charged.cost_nano == expected
    assert charged.prompt_tokens == 100


def test_nonsense_usage_does_not_overflow() -> None:
    charged = charge(ask(), 1000, Delivery("success", sent=True, usage=Usage(10**30, 10**30)))
    assert charged.cost_nano == MOST
    assert charged.prompt_tokens + charged.completion_tokens < 2**53


def test_long_prompts_cache_writes_and_reasoning_have_their_own_prices() -> None:
    nano = Decimal("1e-9")
    rates = (Rate(0, 1 * nano, 2 * nano, 3 * nano, 4 * nano), Rate(1000, 10 * nano, 20 * nano, 30 * nano, 40 * nano))
    model = PricedModel("m", 30 * nano, 40 * nano, prices=Prices(30 * nano, 40 * nano, 5 * nano, rates))
    usage = Usage(1000, 100, cache_write_tokens=200, reasoning_tokens=50)
    charged = charge(ask(model=model), 1000, Delivery("success", sent=True, usage=usage))
    assert charged.cost_nano == 5 + 800 * 1 + 200 * 3 + 50 * 2 + 50 * 4
    longer = msgspec.structs.replace(usage, prompt_tokens=1001)
    charged = charge(ask(model=model), 1000, Delivery("success", sent=True, usage=longer))
    assert charged.cost_nano == 5 + 801 * 10 + 200 * 30 + 50 * 20 + 50 * 40
    assert bounds(ask(model=model, prompt_bound=10, limit=20), 10**9).full == 5 + 10 * 30 + 20 * 40


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (1, "1ms"),
        (999, "999ms"),
        (1000, "1s"),
        (12_500, "12.5s"),
        (60_000, "1m0s"),
        (359_001, "5m59.001s"),
    ],
)
def test_durations_are_written_as_openai_does(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


@pytest.mark.parametrize(("limit", "empty"), [(100, 16 * 2000), (0, 1000)])
def test_the_least_request_has_a_completion_or_else_a_token_of_prompt(limit: int, empty: int) -> None:
    found = bounds(ask(prompt_bound=50, limit=limit), 10**9)
    assert (found.empty, found.least) == (empty, 50 * 1000 + (16 * 2000 if limit else 0))
