"""The tests that the README names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


def named() -> list[str]:
    """The paths of the threat table's last column, below tests/; a bare name is in the folder of the one before it."""
    table = (ROOT / "README.md").read_text().partition("| threat |")[2].partition("\n\n")[0]
    paths = []
    for row in table.splitlines()[2:]:
        before = ""
        for path in re.findall(r"`([^`]+)`", row.rstrip(" |").rpartition("|")[2]):
            before = path if "/" in path else f"{Path(before).parent}/{path}"
            paths.append(before)
    return paths


def test_every_threat_names_a_test() -> None:
    assert len(named()) > 15


@pytest.mark.parametrize("path", named())
def test_what_a_threat_names_has_tests(path: str) -> None:
    where = TESTS / path
    files = sorted(where.rglob("test_*.py")) if where.is_dir() else [where]
    assert files
    assert any(re.search(r"^\s*(async )?def test_", file.read_text(), re.MULTILINE) for file in files)
