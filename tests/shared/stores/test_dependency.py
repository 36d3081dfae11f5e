"""What the log says of an outage."""

from __future__ import annotations

import pytest

from shared.stores.dependency import SETTLED, Dependency


def test_reasons_that_alternate_are_logged_once_an_outage(capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    state = Dependency("redis", now=lambda: clock[0])
    for _ in range(2):
        for reason in ("refused", "no owner", "refused", "no owner"):
            state.failed(reason)
            assert state.reason == reason, "readiness shows the newest"
        clock[0] += SETTLED
        state.answered()
        assert state.reason is None
    output = capsys.readouterr().out
    assert output.count("dependency_out") == 2 * 2, output
    assert output.count("dependency_back") == 2, output


def test_the_length_of_an_outage_is_that_until_the_first_answer(capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    state = Dependency("redis", now=lambda: clock[0])
    state.failed("refused")
    for clock[0] in (1.0, 2.0):
        state.answered()
        state.failed("refused")
    for clock[0] in (4.0 - SETTLED / 2, 50.0):
        state.answered()
    assert "after_s=3.0" in capsys.readouterr().out
