"""The rewriting of streams: whatever bytes come, clients with strict parsers get their data and nothing else."""

from __future__ import annotations

import json

from hypothesis import given, strategies as st

from services.gateway.firefox.rendering import data_lines
from services.gateway.relay.sse import events, parse
from tests.doubles.litellm import DONE, chunk, event, stream_of

_TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
_LINES = st.one_of(
    _TEXT.map(lambda text: f"data: {text}"),
    _TEXT.map(lambda text: f"data:{text}"),
    _TEXT.map(lambda text: f":{text}"),
    _TEXT.map(lambda text: f"event: {text}"),
    _TEXT,
)
_EVENTS = st.lists(
    st.tuples(st.lists(_LINES, min_size=1, max_size=4), st.sampled_from(["\n", "\r\n", "\r"])), max_size=5
).map(lambda given: "".join(end.join(lines) + end + end for lines, end in given).encode())


@given(_EVENTS)
def test_only_data_lines_are_left_and_none_is_lost(block: bytes) -> None:
    written = data_lines(block)
    assert b"\r" not in written
    *lines, last = written.split(b"\n\n")
    assert last == b""
    assert all(line.startswith(b"data: ") and b"\n" not in line for line in lines)
    given = [data for one in events(block) if (data := parse(one)[1]) is not None and data.strip(b" ")]
    assert [line[6:] for line in lines] == [data.replace(b"\n", b" ") for data in given]


@given(st.binary(max_size=200))
def test_any_bytes_can_be_rewritten_and_rewriting_twice_changes_nothing(block: bytes) -> None:
    once = data_lines(block)
    assert data_lines(once) == once


def test_what_litellm_writes_is_passed_on_as_it_is() -> None:
    block = b"".join(stream_of(["a", "b"]))
    assert data_lines(block) is block


def test_json_over_several_lines_becomes_one() -> None:
    pretty = json.dumps(chunk("x"), indent=1)
    block = "".join(f"data: {line}\n" for line in pretty.splitlines()).encode() + b"\n" + DONE
    assert json.loads(data_lines(block).split(b"\n\n")[0][6:]) == json.loads(event(chunk("x"))[6:])
