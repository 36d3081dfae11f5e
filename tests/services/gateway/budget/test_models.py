"""The ids of requests, and what becomes of an admitted one."""

from __future__ import annotations

import time
import uuid

import pytest

from services.gateway.budget.charging import Charge
from services.gateway.budget.models import BudgetState, RateLimits, Reservation, new_id
from shared.domain.outcome import Outcome
from shared.state.packed import Details, LedgerRow
from tests.services.gateway.budget.support import ask, principal

LIMITS = RateLimits(40, 1, 60_000, 2000, 10, 1000)


def test_ids_are_uuids_of_version_7_in_the_order_of_time() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_id() for _ in range(100)]
    while time.time_ns() // 1_000_000 == before:
        pass
    ids.append(later := new_id())
    assert {(one.version, one.variant) for one in map(uuid.UUID, ids)} == {(7, uuid.RFC_4122)}
    assert before <= int(ids[0][:12], 16) <= time.time_ns() // 1_000_000
    assert len(set(ids)) == 101
    assert later > ids[0]


async def test_a_reservation_is_packed_and_becomes_a_row() -> None:
    made = Reservation(ask(n=2), 7, 11, 86_400, 1_700_000_000_123, LIMITS, "ai:86400")
    assert made.packed() == '11|1700000000123|25|100|14|ai:86400|["client\'s own","ai","model","chat",86400]'
    assert made.period_index == 19_675
    assert made.row(Charge(5, 6, 8, 9), Outcome.SUCCESS) == LedgerRow(
        made.ask.id,
        principal().user_id,
        5,
        1_700_000_000_123,
        6,
        8,
        "success",
        Details("client's own", "ai", "model", "chat", 86_400),
        reserved_nano=11,
        rate_tokens=9,
        total="ai:86400",
    )


@pytest.mark.parametrize(("grant", "lowered"), [(999, True), (1000, False)])
async def test_a_grant_below_the_limit_is_lowered(grant: int, lowered: bool) -> None:
    assert Reservation(ask(), grant, 11, 86_400, 1, LIMITS, "").lowered == lowered


def test_rates_are_told_where_there_is_a_limit_and_never_below_nothing() -> None:
    assert LIMITS.headers() == {
        "x-ratelimit-limit-requests": "40",
        "x-ratelimit-remaining-requests": "39",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "2000",
        "x-ratelimit-remaining-tokens": "1990",
        "x-ratelimit-reset-tokens": "1s",
    }
    assert RateLimits(0, 5, 1, 0, 5, 1).headers() == {}
    assert (RateLimits(3, 5, 1, 3, 5, 1).requests_remaining, RateLimits(3, 5, 1, 3, 5, 1).tokens_remaining) == (0, 0)


@pytest.mark.parametrize(("spent", "remaining"), [(60, 10), (90, 0)])
def test_what_remains_is_never_below_nothing(spent: int, remaining: int) -> None:
    assert BudgetState(100, spent, 30, 0.0, LIMITS).remaining_nano == remaining
