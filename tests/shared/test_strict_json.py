"""JSON that every reader reads alike."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import strict_json


@given(st.binary(max_size=200))
def test_strict_json_fails_in_one_way_only(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        strict_json.decode(raw, dict)


@pytest.mark.parametrize("raw", [b'{"a":1,"a":2}', b'{"x":{"a":1,"a":1}}', b'{"a":NaN}', b"[" * 100_000])
def test_strict_json_refuses_what_two_readers_read_differently(raw: bytes) -> None:
    with pytest.raises(ValueError):
        strict_json.decode(raw, dict)
