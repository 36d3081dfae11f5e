"""Log lines that can't be written are lost and counted; their writers neither fail nor wait."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

import pytest

from shared.telemetry.lines import MAX_WAITING, Lines


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 65536)
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def drained(reader: int) -> bytes:
    os.set_blocking(reader, False)
    data = b""
    try:
        while part := os.read(reader, 65536):
            data += part
    except BlockingIOError:
        pass
    return data


def test_lines_arrive_as_they_are(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    lines = Lines(writer)
    lines.write("one\n")
    lines.write("zwölf \ud800\n")
    lines.write("x" * 20_000 + "\n")
    assert drained(reader) == "one\nzwölf \\ud800\n".encode() + b"x" * 20_000 + b"\n"
    assert lines.lost == 0


def test_a_pipe_without_a_reader_loses_lines_and_counts_them(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    lines = Lines(writer)
    for _ in range(3):
        lines.write("gone\n")
    assert lines.lost == 3


def test_a_full_disk_loses_lines_and_counts_them() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    lines = Lines(descriptor)
    lines.write("one\n")
    lines.write("x" * 10_000 + "\n")
    assert lines.lost == 2
    os.close(descriptor)


def test_a_reader_that_stands_still_is_not_waited_for_and_gets_what_there_is_room_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    lines = Lines(writer)
    line = "y" * 999 + "\n"
    count = 3 * MAX_WAITING // 1000
    started = time.monotonic()
    for _ in range(count):
        lines.write(line)
    assert time.monotonic() - started < 5
    assert 0 < lines.lost < count
    got = b""
    for _ in range(200):
        got += drained(reader)
        lines.write("")
    assert got == line.encode() * (count - lines.lost)
    lines.write("more\n")
    assert drained(reader) == b"more\n"


def test_the_end_of_the_process_waits_for_a_slow_reader_for_a_second_at_most(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    lines = Lines(writer)
    for _ in range(100):
        lines.write("z" * 999 + "\n")
    started = time.monotonic()
    lines.close()
    assert 0.9 < time.monotonic() - started < 3
