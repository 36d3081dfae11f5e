"""Users whose budget is spent don't all come back at the same moment."""

from __future__ import annotations

from collections import Counter

import pytest

from services.gateway.budget.resets import delay
from tests.services.gateway.budget.support import principal


@pytest.mark.parametrize(
    ("period_seconds", "most"), [(86_400, 300), (30 * 86_400, 300), (3600, 300), (60, 6), (1, 0.1)]
)
def test_users_are_spread_evenly_after_the_reset(period_seconds: int, most: float) -> None:
    parts = Counter(int(10 * delay(principal(user=user).user_id, period_seconds) / most) for user in range(2000))
    assert set(parts) == set(range(10)), "never before the reset, and never later than said"
    assert max(parts.values()) < 260


def test_a_user_is_always_told_the_same() -> None:
    assert delay("a:ai", 86_400) == delay("a:ai", 86_400) != delay("b:ai", 86_400)
