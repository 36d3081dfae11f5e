"""Every reason that admission knows has words on a user's page, with the code that the client got."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.auth.admin.console.support import refusals
from services.auth.users.operators import User
from services.auth.users.operators_storage import UserRow
from services.auth.users.spending import Spent
from shared.state.decisions import Outlook
from shared.state.refusals import Word
from tests.services.gateway.budget.support import row

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KIND = row(rpm=40, tpm=2000, max_streams=3)


def user(spent: int = 0, *, blocked: bool = False) -> User:
    known = UserRow("u:ai", "u", "ai", "ai", NOW, NOW, NOW if blocked else None, None, None)
    return User(known, Spent(spent, 0, KIND.max_budget_nano, int((NOW + timedelta(hours=1)).timestamp())))


@pytest.mark.parametrize(
    ("reason", "code", "words"),
    [
        ("blocked", "user_blocked", "The identity is blocked"),
        ("revoked", "user_blocked", "The device is revoked"),
        ("token", "invalid_token", "that one alone"),
        ("streams", "rate_limit_exceeded", "3 requests are open, of 3."),
        ("rpm", "rate_limit_exceeded", "41 requests in the last minute, of 40. A place comes free in 30 s."),
        ("tpm", "rate_limit_exceeded", "2100 tokens in the last minute, of 2000. A place comes free in 30 s."),
        ("exceeded", "budget_exceeded", "All of $0.10 is spent. Resets in 30 s."),
        ("large", "request_too_large", "Only $0.001 of $0.10 is left, and the cheapest request below cost $0.005."),
        ("reserved", "budget_reserved", "Open requests may cost what is left"),
        ("total_exceeded", "budget_exceeded", "The total budget of all users of ai together is spent."),
        ("total_large", "request_too_large", "The total budget of all users of ai together has less left than $0.005."),
        ("total_reserved", "budget_reserved", "the total budget of all users of ai together has left"),
        ("total_unknown", "unavailable", "have not added up yet"),
    ],
)
def test_a_reason_in_words(reason: str, code: str, words: str) -> None:
    outlook = Outlook({Word(reason): 30.0}, requests=41, tokens=2100, open_requests=3)
    (found,) = refusals(user(99_000_000), KIND, KIND, outlook, 5_000_000)
    assert found.code == code
    assert words in found.text


def test_without_redis_only_what_postgresql_knows_is_said() -> None:
    codes = [found.code for found in refusals(user(blocked=True), KIND, KIND, None, 1)]
    assert codes == ["user_blocked", "unavailable"]


def test_a_service_type_that_is_no_more_is_said() -> None:
    assert [found.code for found in refusals(user(blocked=True), None, None, None, 1)] == [
        "user_blocked",
        "invalid_scope",
    ]


def test_a_service_type_that_is_switched_off_is_said() -> None:
    (found,) = refusals(user(), row(enabled=False), KIND, Outlook({}, 0, 0, 0), 1)
    assert (found.code, found.text) == ("unavailable", "The service type is switched off, for all its users.")
