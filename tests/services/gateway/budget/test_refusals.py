"""The error of each refusal, before it reaches a client."""

from __future__ import annotations

import pytest

from services.gateway.budget.models import RateLimits
from services.gateway.budget.refusals import KINDS, Refusal, label
from services.gateway.errors import GatewayError, RateLimited
from shared.errors import DependencyUnavailable, ServiceError
from shared.state.refusals import Word
from tests.services.gateway.budget.support import row


def test_only_a_spent_budget_is_spread_over_a_time_after_its_reset() -> None:
    for word in KINDS.keys() - {Word.TOKEN}:  # of which no script says when to come back
        error = Refusal(word, 10).error(5)
        assert error.retry_after == (15 if word.row.code == "budget_exceeded" else 10)
        assert error.code == word.row.code
        assert error.message == (word.row.message or type(error).message)
    assert Refusal(Word.EXCEEDED).error(5).retry_after is None


def test_a_refusal_tells_the_rates_and_its_reason() -> None:
    limits = RateLimits(40, 1, 60_000, 2000, 10, 1000)
    error = Refusal(Word.TPM, 1, limits).error()
    assert isinstance(error, RateLimited)
    assert (error.reason, error.headers) == ("tpm", {"Retry-After": "1", **limits.headers()})


def test_operators_are_told_by_what_it_was_decided() -> None:
    error = Refusal(Word.EXCEEDED).error(tier=row("small"), budget="0.1")
    assert isinstance(error, GatewayError)
    assert error.why == "The user's 0.1 USD (tier small) are spent."
    assert Refusal(Word.EXCEEDED).error().why is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "expected"),
    [(Word.FULL, ("postgres", 5, "too many ledger rows wait in Redis")), (Word.SETTLED, ("redis", 1, "unavailable"))],
)
def test_what_is_no_limit_of_the_user_is_a_dependency_that_is_away(
    word: Word, expected: tuple[str, float, str]
) -> None:
    error = Refusal(word).error()
    assert isinstance(error, DependencyUnavailable)
    assert (error.dependency, error.retry_after, error.reason) == expected


def test_metrics_name_the_reason_of_each() -> None:
    assert [label(Refusal(word).error()) for word in (Word.RPM, Word.BLOCKED, Word.LARGE)] == [
        "rpm",
        "blocked",
        "request_too_large",
    ]
    assert label(ServiceError()) == "unavailable"
