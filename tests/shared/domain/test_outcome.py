"""The words of outcomes: stored for years, and written by Python and Lua."""

from __future__ import annotations

import re

from shared.domain.outcome import Outcome
from tests.deploy.declarations import ROOT


def test_the_words_are_those_that_are_stored() -> None:
    assert list(Outcome) == ["success", "error", "abort", "timeout", "expired"]


def test_the_scripts_write_no_other_word() -> None:
    scripts = (ROOT / "shared" / "state" / "scripts").rglob("*.lua")
    # an entry of the outbox ends with the outcome and the details
    written = [word for path in scripts for word in re.findall(r"'(\w*)',\s*details\}", path.read_text())]
    assert written == [Outcome.EXPIRED]
