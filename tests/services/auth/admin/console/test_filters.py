"""How the pages write a request's outcome."""

from __future__ import annotations

import pytest

from services.auth.admin.console.filters import outcome_tone
from shared.domain.outcome import Outcome


@pytest.mark.parametrize("outcome", [*Outcome, "of a later release"])
def test_only_a_success_looks_good_and_a_client_that_left_looks_like_no_failure(outcome: str) -> None:
    assert outcome_tone(str(outcome)) == {"success": "good", "abort": "plain"}.get(outcome, "bad")
