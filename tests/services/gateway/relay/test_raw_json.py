"""JSON looked at as bytes: how many items it has, and halves of characters."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, strategies as st

from services.gateway.errors import InvalidRequest, RequestTooLarge
from services.gateway.relay.raw_json import (
    MAX_HALVES,
    MAX_ITEMS,
    check_items,
    has_halves,
    mend_request,
    mend_surrogates,
)

HIGH, LOW = (
    ["".join(half) for half in itertools.product(["\\u"], "dD", third, *["0123456789abcdefABCDEF"] * 2)]
    for third in ("89abAB", "cdefCDEF")
)
#: Each way to write each half, alone and in a pair.
EVERY_HALF = "".join(f"{half}|" for half in HIGH + LOW) + "".join(map("".join, zip(HIGH * 2, LOW, strict=False)))
#: What escapes of strings are made of, and what looks like one.
ESCAPED = st.lists(
    st.sampled_from(HIGH)
    | st.sampled_from(LOW)
    | st.sampled_from(
        [
            "\\\\",
            "\\\\ud800",
            "\\\\\\udc00",
            '\\"',
            "\\u0041",
            "\\n",
            "u",
            "ud800",
            "d",
            "\u00e9",
            "\U0001f600",
            "\\ufffd",
            "\\uD7FF",
            "\\ue000",
        ]
    ),
    max_size=8,
).map("".join)


@given(ESCAPED)
@example(EVERY_HALF)
def test_lone_halves_become_the_replacement_character_and_nothing_else_changes(text: str) -> None:
    data = f'{{"{text}":["{text}"]}}'.encode()
    expected = re.sub("[\ud800-\udfff]", "\ufffd", json.loads(f'"{text}"'))
    mended = mend_surrogates(data)
    assert asyncio.run(mend_request(data)) == mended
    assert msgspec.json.decode(mended) == {expected: [expected]}
    if expected == json.loads(f'"{text}"'):
        assert mended == data
    else:
        assert has_halves(data)


async def test_a_body_with_too_many_halves_is_refused() -> None:
    pairs = b"\\ud83d\\ude00" * (MAX_HALVES // 2)
    assert await mend_request(b'"%b"' % pairs) == b'"%b"' % pairs
    with pytest.raises(InvalidRequest):
        await mend_request(b'"%b\\ud83d"' % pairs)


@pytest.mark.parametrize(
    "item", [b"1", b"[]", b"{}", b'""', b'"a"', b'{"a":1}', b'"\\\\"', b'"\\""', b'"[,{"', b"[1,[2]]"]
)
async def test_a_million_small_items_are_counted_whatever_they_are(item: bytes) -> None:
    body = b'{"model":"m","x":[%b]}' % b",".join([item] * (MAX_ITEMS + 1))
    with pytest.raises(RequestTooLarge):
        await check_items(body)


@pytest.mark.parametrize("text", [",", "[", "{", '\\",', "\\\\,", '\\\\\\",{[', "\\n,"])
async def test_text_is_not_counted(text: str) -> None:
    await check_items(f'{{"messages":[{{"role":"user","content":"{text * MAX_ITEMS}"}}]}}'.encode())


def items(value: Any) -> int:
    if isinstance(value, dict):
        return max(1, len(value)) + sum(map(items, value.values()))
    return max(1, len(value)) + sum(map(items, value)) if isinstance(value, list) else 0


@given(
    st.recursive(
        st.integers() | st.text(st.sampled_from('",[{\\ x')), lambda of: st.lists(of) | st.dictionaries(st.text(), of)
    ),
    st.text(st.sampled_from('",[{\\x')),
)
def test_the_count_is_right_at_the_limit(value: Any, text: str) -> None:
    """Filled up to the limit, and one item more."""
    room = MAX_ITEMS - items([value, text]) - 1
    body = json.dumps([value, text] + [[], text * 9] * (room // 3) + [1] * (room % 3), separators=(",", ":")).encode()
    asyncio.run(check_items(body))
    with pytest.raises(RequestTooLarge):
        asyncio.run(check_items(body[:-1] + b",1,1,1,1,1]"))
