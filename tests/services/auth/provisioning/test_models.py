"""The figures of LiteLLM's budgets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.auth.provisioning.models import Budget
from shared.domain.service_types import ServiceTypes


@pytest.mark.parametrize(
    ("figures", "factor", "nano", "duration"),
    [
        ("ai=0.10/1d", 2, 200_000_000, "1d"),
        ("ai=0.10/1h", 1, 100_000_000, "1h"),
        ("ai=0.000000001/7d", 1.5, 2, "7d"),
        ("ai=12.345678901/30d", 1.1, 13_580_246_791, "30d"),
        ("ai=0/1d", 2, 0, "1d"),
    ],
)
def test_a_budget_is_the_rows_times_the_factor_in_whole_nano_dollars(
    service_types: Callable[[str], ServiceTypes], figures: str, factor: float, nano: int, duration: str
) -> None:
    budget = Budget.of(service_types(figures).by_name["ai"], factor)
    assert budget == Budget("mlpa:ai", nano, duration)
    assert round(budget.max_budget_usd * 10**9) == nano
