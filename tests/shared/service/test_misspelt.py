"""Variables that are nearly settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from shared.service.misspelt import distance, misspelt

ROOT = Path(__file__).parents[3]
KNOWN = {name.upper() for name in (*AuthSettings.model_fields, *GatewaySettings.model_fields)}


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("MAX_OPEN_REQUEST", "MAX_OPEN_REQUESTS"),
        ("max_open_request", "MAX_OPEN_REQUESTS"),
        ("CHALENGE_SECRTE", "CHALLENGE_SECRET"),
        ("MLPA_ADMINS_KEY", "MLPA_ADMIN_KEY"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("OPSPORT", "OPS_PORT"),
        ("PROT", "PORT"),
        ("TOPP", "TOP_P"),
    ],
)
def test_two_letters_off_is_told(variable: str, meant: str) -> None:
    assert list(misspelt([variable], KNOWN)) == [(variable.upper(), meant)]


@pytest.mark.parametrize("variable", ["HOME", "PATH", "PWD", "HOSTNAME", "LOGNAME", "TERM", "REDIS_PASSWORD", "MAIL"])
def test_other_words_are_let_be(variable: str) -> None:
    assert list(misspelt([variable], KNOWN)) == []


def test_settings_and_what_the_documents_name_are_let_be() -> None:
    assert list(misspelt([name.lower() for name in KNOWN], KNOWN)) == []
    named = set()
    for path in ("README.md", "docker-compose.yml", "deploy/Dockerfile", "deploy/RUNBOOK.md"):
        named |= set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", (ROOT / path).read_text()))
    assert list(misspelt(named, KNOWN)) == []


def plain(one: str, other: str) -> int:
    """The textbook's table, every cell of it."""
    table = {(i, 0): i for i in range(len(one) + 1)} | {(0, j): j for j in range(len(other) + 1)}
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            ways = [table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (one[i - 1] != other[j - 1])]
            if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
                ways.append(table[i - 2, j - 2] + 1)
            table[i, j] = min(ways)
    return table[len(one), len(other)]


@given(st.text("ABC_", max_size=8), st.text("ABC_", max_size=8), st.integers(1, 9))
def test_the_distance_is_the_textbooks(one: str, other: str, most: int) -> None:
    assert distance(one, other, most) == min(plain(one, other), most)
