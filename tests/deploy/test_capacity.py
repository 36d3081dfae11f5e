"""The capacity plan has the figures that its arithmetic gives."""

from __future__ import annotations

import runpy
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_plan_has_the_table_that_the_arithmetic_gives() -> None:
    table = runpy.run_path(str(DEPLOY / "capacity.py"))["table"]([1e3, 1e5, 1e7])
    assert table in (DEPLOY / "CAPACITY.md").read_text(), "paste the output of: python deploy/capacity.py"
