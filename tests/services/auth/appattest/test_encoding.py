"""Base64, key ids and signed client data."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from services.auth.appattest.encoding import (
    MAX_CLIENT_DATA_BYTES,
    canonical_key_id,
    decode_base64,
    decode_key_id,
    parse_client_data,
)
from services.auth.appattest.errors import Malformed, Step

KEY_ID = bytes.fromhex("fbefbe" * 10 + "fbff")
CANONICAL = "++++" * 10 + "+/8="


@pytest.mark.parametrize(
    "text",
    [
        CANONICAL,
        CANONICAL.rstrip("="),
        CANONICAL.replace("+", " "),
        CANONICAL.replace("+", "-").replace("/", "_"),
        CANONICAL.replace("+", "-").replace("/", "_").rstrip("="),
    ],
)
def test_every_way_to_write_a_key_id_has_one_name(text: str) -> None:
    assert decode_key_id(text) == KEY_ID
    assert canonical_key_id(text) == CANONICAL


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        CANONICAL + "=",
        CANONICAL + "\n",
        CANONICAL[:-2] + "9=",  # bits beyond the last byte
        CANONICAL[:-1] + "A",
        CANONICAL[:-2] + "\n8=",
        CANONICAL.replace("/", "_"),  # two alphabets
        "-" + CANONICAL[1:],
        CANONICAL[:-5] + "8=",
        base64.b64encode(KEY_ID[:31]).decode(),
        base64.b64encode(KEY_ID + b"\0").decode(),
        CANONICAL.replace("8", "é"),
        CANONICAL.replace("8", "\ud800"),
        "A" * 100_000,
    ],
)
def test_anything_else_is_no_key_id(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        canonical_key_id(text)
    assert caught.value.step is Step.BASE64


@given(st.binary(max_size=64))
def test_base64_is_read_in_both_alphabets_and_with_or_without_padding(data: bytes) -> None:
    standard, url = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    for text in (standard, url, standard.rstrip("="), url.rstrip("=")):
        assert decode_base64(text, max_bytes=64) == data
    assert decode_base64(standard, max_bytes=64, strict=True) == data


@given(st.text(st.sampled_from("AB89+/-_= \n\0é"), max_size=9))
def test_strict_base64_has_one_text_per_value(text: str) -> None:
    try:
        data = decode_base64(text, max_bytes=64, strict=True)
    except Malformed:
        return
    assert base64.b64encode(data).decode() == text


@pytest.mark.parametrize("text", ["-_8=", "+/8", " +8=", "+/9=", "+/8=\n", "+/8==", "AAA=AAA=", "===="])
def test_strict_base64_takes_the_standard_form_alone(text: str) -> None:
    with pytest.raises(Malformed):
        decode_base64(text, max_bytes=64, strict=True)


def test_base64_of_too_many_bytes_is_refused() -> None:
    assert decode_base64("AAAA", max_bytes=3) == bytes(3)
    for text in ("AAAA", "AAA", "AAAAAAAA"):
        with pytest.raises(Malformed):
            decode_base64(text, max_bytes=1)


@pytest.mark.parametrize("text", ["+-AA", "+_AA", "/-AA", "/_AA"])
def test_a_text_has_one_alphabet(text: str) -> None:
    with pytest.raises(Malformed, match="alphabets"):
        decode_base64(text, max_bytes=3)


def test_a_text_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(Malformed, match="too long"):
        decode_base64("!" * 100_000, max_bytes=3)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"{}", {}),
        (b' {"a" : 1} \n', {"a": 1}),
        (b"{}" + b" " * (4 * 1024 - 2), {}),
        ('{"é":"\\ud83d\\ude00"}'.encode(), {"é": "😀"}),
        (b'{"a":"]]]]]]]]]][[[[[[[[[[[[{{{{\\"["}', {"a": ']]]]]]]]]][[[[[[[[[[[[{{{{"['}),
        (b'{"a":[[[[[[[1.5]]]]]]]}', {"a": [[[[[[[1.5]]]]]]]}),
        (b'{"a":{"a":null},"b":{"a":true}}', {"a": {"a": None}, "b": {"a": True}}),
    ],
)
def test_client_data_is_one_object(raw: bytes, value: dict[str, Any]) -> None:
    assert parse_client_data(raw) == value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'"a"',
        b"1",
        b"null",
        b"{",
        b"{}{}",
        b"{}\0",
        b"\xef\xbb\xbf{}",
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'{"x":{"a":1,"a":2}}',
        b'{"x":[{"a":1,"a":2}]}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":01}',
        b'{"a":"\n"}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":[[[[[[[[1]]]]]]]]}',
        b'{"a":[],"b":[],"c":[],"d":[[[[[[[[1]]]]]]]]}',
        b'{"a":' + b"[" * 3000,
        b'{"a":"' + b'\\"' * 2000,
        b'{"a":' + b"9" * 5000 + b"}",
        b"{}" + b" " * (4 * 1024 - 1),
    ],
)
def test_client_data_of_any_other_shape_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse_client_data(raw)
    assert caught.value.step is Step.JSON


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=9), json_values, max_size=4), st.booleans())
def test_json_is_read_as_python_reads_it(value: dict[str, Any], escaped: bool) -> None:
    raw = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    try:
        assert parse_client_data(raw) == value
    except Malformed:
        assert len(raw) > MAX_CLIENT_DATA_BYTES or _depth(value) > 8 or b"\\ud" in raw or b"\xed" in raw


def _depth(value: object) -> int:
    match value:
        case dict():
            return 1 + max(map(_depth, value.values()), default=0)
        case list():
            return 1 + max(map(_depth, value), default=0)
        case _:
            return 0


@given(st.binary(max_size=80) | st.text(st.sampled_from('{}[]":,\\ue1-.0a '), max_size=60).map(str.encode))
def test_any_bytes_are_client_data_or_malformed(raw: bytes) -> None:
    try:
        value = parse_client_data(raw)
    except Malformed:
        return
    assert value == json.loads(raw)
