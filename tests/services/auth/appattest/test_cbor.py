"""Strict CBOR: one encoding per value, bounded before anything is decoded."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import assume, given, strategies as st

from services.auth.appattest.cbor import MAX_DEPTH, MAX_ITEMS, NotStrictCbor, decode, decode_first, split_map

REFUSED = {
    "nothing": "",
    "two items": "0000",
    "a number ends early": "19ff",
    "a string ends early": "43aabb",
    "a string longer than memory": "5bffffffffffffffff00",
    "an array longer than memory": "9bffffffffffffffff",
    "a map without a value": "a101",
    "indefinite bytes": "5f41aaff",
    "indefinite text": "7f6161ff",
    "indefinite array": "9f01ff",
    "indefinite map": "bf0101ff",
    "a break": "ff",
    "a reserved length": "1c",
    "a long number in two bytes": "1817",
    "a long number in three bytes": "1900ff",
    "a long number in five bytes": "1a0000ffff",
    "a long number in nine bytes": "1b00000000ffffffff",
    "a long negative number": "3817",
    "a long length of bytes": "580161",
    "a long length of text": "780161",
    "a long length of an array": "980100",
    "a long length of a map": "b8010100",
    "a date": "c000",
    "a big number": "c24101",
    "a shared reference": "d81c00",
    "self-described": "d9d9f700",
    "false": "f4",
    "null": "f6",
    "undefined": "f7",
    "a simple value": "f820",
    "half a float": "f93c00",
    "a float": "fb3ff0000000000000",
    "text that isn't UTF-8": "61ff",
    "text with a surrogate": "63eda080",
    "a key twice": "a201010102",
    "a name twice": "a2616101616102",
    "an array as a key twice": "a280018002",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_strict_is_refused(name: str) -> None:
    with pytest.raises(NotStrictCbor):
        decode(bytes.fromhex(REFUSED[name]))


@pytest.mark.parametrize("encoded", ["19ff", "1affffff", "43aabb", "7b7fffffffffffffff"])
def test_what_ends_early_is_seen_before_it_is_decoded(encoded: str) -> None:
    with pytest.raises(NotStrictCbor, match="early"):
        decode(bytes.fromhex(encoded))


@pytest.mark.parametrize("value", [23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1])
def test_a_number_has_its_shortest_form(value: int) -> None:
    assert decode(cbor2.dumps(value)) == value
    assert decode(cbor2.dumps(-1 - value)) == -1 - value


def test_depth_and_items_are_bounded() -> None:
    def nested(levels: int) -> bytes:
        return b"\x81" * levels + b"\x00"

    assert decode(nested(MAX_DEPTH)) == [[[[0]]]]
    with pytest.raises(NotStrictCbor, match="deep"):
        decode(nested(MAX_DEPTH + 1))
    assert decode(cbor2.dumps([0] * (MAX_ITEMS - 1))) == [0] * (MAX_ITEMS - 1)
    with pytest.raises(NotStrictCbor, match="items"):
        decode(cbor2.dumps([0] * MAX_ITEMS))


def test_a_first_item_ends_where_it_ends() -> None:
    assert decode_first(bytes.fromhex("a10102") + b"the rest") == ({1: 2}, 3)


scalars = (
    st.integers(-(2**64), 2**64 - 1)
    | st.binary(max_size=300)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(0, 30) | st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_what_is_decoded_has_one_encoding(value: object) -> None:
    encoded = cbor2.dumps(value)
    assume(_depth(value) <= MAX_DEPTH and _items(value) <= MAX_ITEMS)
    decoded = decode(encoded)
    assert decoded == value
    assert cbor2.dumps(decoded) == encoded


def _inner(value: object) -> list[object]:
    match value:
        case dict():
            return [*value.keys(), *value.values()]
        case list():
            return value
        case _:
            return []


def _depth(value: object) -> int:
    return isinstance(value, dict | list) + max(map(_depth, _inner(value)), default=0)


def _items(value: object) -> int:
    return 1 + sum(map(_items, _inner(value)))


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_to_their_one_value_or_refused(data: bytes) -> None:
    try:
        value = decode(data)
    except NotStrictCbor:
        return
    assert cbor2.dumps(value) == data


@given(st.dictionaries(st.text(max_size=8), st.floats() | st.booleans() | st.lists(st.integers(0, 5)), max_size=8))
def test_a_map_is_taken_apart_into_the_bytes_of_its_values(entries: dict[str, object]) -> None:
    taken = split_map(cbor2.dumps(entries), max_entries=8, max_key=64, max_value=256)
    assert taken == {name: cbor2.dumps(value) for name, value in entries.items()}


@pytest.mark.parametrize("value", ["f800", "f81f", "f8", "fa0000", "fc", "ff", "1817", "c000", "81ff", "5f40ff"])
def test_a_value_that_is_not_canonical_is_refused_though_it_is_not_decoded(value: str) -> None:
    with pytest.raises(NotStrictCbor):
        split_map(b"\xa1\x61a" + bytes.fromhex(value), max_entries=8, max_key=64, max_value=256)


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail_otherwise_when_they_are_taken_apart(data: bytes) -> None:
    for prefix in (b"", b"\xa1\x61a"):
        try:
            taken = split_map(prefix + data, max_entries=16, max_key=64, max_value=256)
        except NotStrictCbor:
            continue
        assert all(len(value) <= 256 for value in taken.values())
