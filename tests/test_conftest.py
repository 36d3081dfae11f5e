"""A run of the tests says at its end what it left out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

@pytest.mark.skipif(True, reason="a tool is not installed")
@pytest.mark.parametrize("number", [1, 2])
def test_with_a_tool(number): ...

def test_with_another():
    pytest.skip("another is missing")

def test_with_nothing(): ...
"""


def test_what_did_not_run_is_counted_by_its_reason(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", "/dev/null", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "2 tests: a tool is not installed" in done.stdout
    assert "1 test: another is missing" in done.stdout
    assert "test_with_nothing" not in done.stdout
