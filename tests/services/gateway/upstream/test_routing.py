"""The facts in LiteLLM's headers; no header can do harm."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from services.gateway.upstream.routing import MAX_BACKENDS, RoutingFacts, RoutingMetrics, cost_of
from shared.telemetry.metrics import Registry

HEADERS = {
    "x-litellm-model-api-base": "https://Api.Example.com/v1?key=secret",
    "x-litellm-attempted-fallbacks": "1",
    "x-litellm-attempted-retries": "2",
    "x-litellm-response-duration-ms": "1500.5",
    "x-litellm-response-cost": "1.25e-05",
}


def test_the_headers_of_an_answer_are_read() -> None:
    assert RoutingFacts.of(HEADERS) == RoutingFacts("api.example.com", 1, 2, 1.5005, Decimal("0.0000125"))
    assert RoutingFacts.of({}) == RoutingFacts(None, 0, 0, None, None)


@pytest.mark.parametrize(
    ("header", "text", "name", "value"),
    [
        ("x-litellm-attempted-fallbacks", "1000000", "fallbacks", 100),
        ("x-litellm-attempted-retries", "-3", "retries", 0),
        ("x-litellm-attempted-retries", "nan", "retries", 0),
        ("x-litellm-response-duration-ms", "1e30", "seconds", 3600),
        ("x-litellm-response-duration-ms", "None", "seconds", None),
        ("x-litellm-model-api-base", "http://[", "backend", None),
        ("x-litellm-model-api-base", 'http://a"b', "backend", None),
        ("x-litellm-response-cost", "-1", "cost", None),
        ("x-litellm-response-cost", "inf", "cost", None),
        ("x-litellm-response-cost", "0.0", "cost", None),
    ],
)
def test_nonsense_is_clamped_or_dropped(header: str, text: str, name: str, value: object) -> None:
    assert getattr(RoutingFacts.of({header: text}), name) == value


@given(st.dictionaries(st.sampled_from(sorted(HEADERS)), st.text(max_size=50)))
def test_no_text_is_an_exception(headers: dict[str, str]) -> None:
    RoutingMetrics(Registry()).answered(RoutingFacts.of(headers), "m")


@pytest.mark.parametrize("value", [None, True, [], {}, "x", float("nan"), float("inf"), 0, -1])
def test_what_is_no_amount_costs_nothing(value: object) -> None:
    assert cost_of(value) is None


def test_backends_are_bounded() -> None:
    registry = Registry()
    metrics = RoutingMetrics(registry)
    for number in range(1000):
        metrics.answered(RoutingFacts(f"host{number}", 0, 0, None, None), "m")
    text = registry.render().decode()
    assert text.count("litellm_requests_total{") == MAX_BACKENDS + 2
    assert 'litellm_requests_total{backend="other"} 980' in text
