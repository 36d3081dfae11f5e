"""FxA's rules of implication, and that no odd scope implies more than FxA means it to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from services.auth.fxa.scopes import satisfies

VECTORS = Path(os.environ.get("APP_ATTEST_VECTORS", "../shared/vectors")) / "fxa_scope_match.json"


def vectors() -> list[dict[str, Any]]:
    return json.loads(VECTORS.read_text())["vectors"] if VECTORS.exists() else []


@pytest.mark.skipif(not VECTORS.exists(), reason="no vectors here")
@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: f"{vector['provided']} {vector['required']}")
def test_it_judges_as_fxas_own_library(vector: dict[str, Any]) -> None:
    required = vector["required"]
    assert satisfies(vector["provided"], [required] if isinstance(required, str) else required) is vector["matches"]


@pytest.mark.parametrize(
    ("provided", "required", "satisfied"),
    [
        ("profile", "profile", True),
        ("profile", "profile:uid", True),
        ("profile", "profile:uid:deep", True),
        ("profile:uid", "profile", False),
        ("profile", "profile:write", False),
        ("profile:write", "profile", True),
        ("profile:write", "profile:uid:write", True),
        ("profile:uid:write", "profile:write", False),
        ("profile:write", "profilewrite", False),
        ("https://x.test/apps", "https://x.test/apps/a", True),
        ("https://x.test/apps", "https://x.test/apps2", False),
        ("https://x.test/apps", "http://x.test/apps", False),
        ("https://x.test/apps#read", "https://x.test/apps/a#read", True),
        ("https://x.test/apps#read", "https://x.test/apps/a#write", False),
        ("https://x.test/apps#read", "https://x.test/apps/a", False),
        ("https://x.test/apps", "https://x.test/apps/a#read", True),
        # What FxA never issues must imply nothing
        ("write", "profile", False),
        ("write", "profile:write", False),
        ("", "profile", False),
        (":write", "profile", False),
        ("https:", "https://x.test/apps", False),
        ("https:/", "https://x.test/apps", False),
        ("https://", "https://x.test/apps", False),
        ("https://x.test", "https://x.test/apps", False),
        ("https://x.test/", "https://x.test/apps", False),
        ("https://x.test/apps#", "https://x.test/apps", False),
        ("https", "https://x.test/apps", False),
        ("https:", "https:x", False),
    ],
)
def test_one_scope_implies_another(provided: str, required: str, satisfied: bool) -> None:
    assert satisfies([provided], [required]) is satisfied


def test_all_required_scopes_are_needed_and_none_is_no_demand() -> None:
    assert satisfies(["a", "b"], ["a", "b:c"])
    assert not satisfies(["a"], ["a", "b"])
    assert satisfies([], [])
    assert not satisfies([], ["a"])


names = st.lists(st.sampled_from(["profile", "uid", "email", "openid"]), min_size=1, max_size=4).map(":".join)


@given(names, names)
def test_short_names_imply_exactly_what_is_below_them(have: str, need: str) -> None:
    assert satisfies([have], [need]) is (need == have or need.startswith(have + ":"))
    assert satisfies([have + ":write"], [need]) is satisfies([have], [need])
    assert satisfies([have], [need + ":write"]) is False


@given(st.text(), st.text())
def test_no_text_makes_it_fail(have: str, need: str) -> None:
    assert satisfies([have], [need]) in (True, False)
