"""Framing and reading of events, over every way that a stream can be cut into reads."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from services.gateway.budget.models import Usage
from services.gateway.chat.tally import Tally
from services.gateway.relay import sse
from tests.doubles.litellm import DONE, chunk, event, stream_of, usage_chunk

ENDS = [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\n\r", b"\r\n\r"]


def reads(whole: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(whole) + 1) for cut in cuts}), len(whole)]
    return [whole[a:b] for a, b in pairwise(edges) if a < b]


def meant(stream: bytes) -> list[tuple[bytes, bytes | None]]:
    return [parsed for event in sse.events(stream) if (parsed := sse.parse(event))[1] is not None]


def replay(parts: list[bytes], *, show_usage: bool = False) -> tuple[bytes, Tally]:
    framer, tally, out = sse.Framer(), Tally(show_usage=show_usage), b""
    for part in parts:
        block = framer.push(part)
        out += tally.read(block)
        if not tally.over:
            assert b"".join(sse.events(block)) == block
    return out + tally.read_last(framer.rest()), tally


STREAMS = {
    "ordinary": b"".join(stream_of(["Hel", "lo", "é\n\"'\\"], prompt=5)),
    "CRLF": b"".join(stream_of(["a", "b"], prompt=5, completion=3)).replace(b"\n", b"\r\n"),
    "CR": b"".join(stream_of(["a", "b"], prompt=5, completion=3)).replace(b"\n", b"\r"),
    "all at once": sse.BOM
    + b": hi\r\n\r\ndata:"
    + json.dumps(chunk("x")).encode()
    + b"\r\rid: 1\nevent: message\ndata: {\ndata: }\n\n"
    + event(chunk(finish="stop"))
    + event(usage_chunk(5, 3))
    + DONE,
}


@pytest.mark.parametrize("name", STREAMS)
def test_cutting_a_stream_at_every_byte_changes_nothing(name: str) -> None:
    whole = STREAMS[name]
    expected, tally = replay([whole])
    assert tally.done
    assert tally.usage == Usage(5, 3)
    for cut in range(1, len(whole)):
        out, seen = replay(reads(whole, [cut]))
        assert meant(out) == meant(expected), cut
        assert out == expected or b"\r" in whole  # half of a CRLF around a chunk that is taken out may stay or go
        assert (seen.text, seen.usage, seen.finished, seen.done) == (tally.text, tally.usage, tally.finished, True)


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a", "é", '"usage"', "data: [DONE]", "\n\n", "\\"]), st.sampled_from(ENDS)),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.integers(0, 10_000), max_size=12),
)
@settings(max_examples=300, deadline=None)
def test_any_line_ends_cut_anywhere_bring_the_same_text(parts: list[tuple[str, bytes]], cuts: list[int]) -> None:
    whole = b"".join(b"data: " + json.dumps(chunk(text)).encode() + end for text, end in parts)
    out, tally = replay(reads(whole, cuts))
    assert out == whole
    assert tally.text == sum(len(text.encode()) for text, _ in parts)
    assert tally.error is None


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=300, deadline=None)
def test_no_bytes_whatsoever_break_the_reading(noise: bytes, cuts: list[int]) -> None:
    out, _ = replay(reads(b"data: " + noise + b"\n\n" + noise, cuts))
    assert len(out) <= 2 * len(noise) + 10


def test_an_unfinished_event_is_held_up_to_a_limit() -> None:
    framer = sse.Framer()
    assert framer.push(b"data: " + b"x" * 1000) == b""
    assert not framer.between_events
    assert framer.push(b"\n\n").endswith(b"x\n\n")
    assert framer.between_events
    for _ in range(1024):
        framer.push(b"x" * 1024)
    with pytest.raises(sse.EventTooLong):
        framer.push(b"x")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"choices": "nonsense"}, 0),
        ({"choices": [{"delta": {"content": {"a": "bc"}}}]}, 3),
        ({"choices": [{"delta": "abc"}]}, 8),
        ({"choices": [{"delta": {"tool_calls": "abc"}}]}, 18),
        ({"choices": [{"delta": None}]}, 0),
        ({"choices": [{"delta": {"reasoning": "ab", "reasoning_content": "ab"}}]}, 2),
        ({"choices": [{"delta": {"refusal": "ab"}}]}, 2),
        ({"choices": [{"delta": {"function_call": {"name": "f", "arguments": "ab"}}}]}, 2),
        ({"choices": [{"delta": {"content": "a", "function_call": {"arguments": "ab"}}}]}, 3),
        ({"choices": [{"index": 1, "delta": {"content": "a"}}, {"index": 0, "delta": {"content": "b"}}]}, 2),
        ([1, 2], 5),
        ("text", 6),
    ],
)
def test_odd_shapes_count_no_less_than_they_hold(data: object, text: int) -> None:
    tally = Tally()
    raw = b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
    assert tally.read(raw) == raw
    assert tally.text == text


@pytest.mark.parametrize("numbers", [{"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": "9"}, {"x": 1}])
def test_usage_that_makes_no_sense_counts_as_nothing(numbers: dict[str, object]) -> None:
    tally = Tally()
    tally.read(event({"choices": [], "usage": numbers}))
    assert tally.usage in (None, Usage(0, 0))
