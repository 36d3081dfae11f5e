"""JSON that every reader reads alike."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, strategies as st

from shared import strict_json


@given(st.binary(max_size=200))
def test_strict_json_fails_in_one_way_only(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        strict_json.decode(raw, dict)


@given(st.binary(max_size=200))
def test_a_strict_value_fails_in_one_way_only(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        strict_json.parse(raw, depth=8)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":2}',
        b'{"x":[{"a":1,"\\u0061":1}]}',
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":[[["deeper than three"]]]}',
        b"[" * 100_000,
        b'{"a":"\\ud800"}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":"\xff"}',
        b'{"a":' + b"9" * 5000 + b"}",
    ],
    ids=range(10),
)
def test_a_strict_value_is_read_in_one_way_by_everyone(raw: bytes) -> None:
    with pytest.raises(ValueError):
        strict_json.parse(raw, depth=3)


def test_brackets_in_text_are_no_depth() -> None:
    raw = b'{"a":["[[[[\\"[[[[",{"b":1.5}]}'
    assert strict_json.parse(raw, depth=3) == {"a": ['[[[["[[[[', {"b": 1.5}]}


@pytest.mark.parametrize("raw", [b'{"a":1,"a":2}', b'{"x":{"a":1,"a":1}}', b'{"a":NaN}', b"[" * 100_000])
def test_strict_json_refuses_what_two_readers_read_differently(raw: bytes) -> None:
    with pytest.raises(ValueError):
        strict_json.decode(raw, dict)
