"""Server-sent events as bytes: where events end, and an event's data (WHATWG HTML, section 9.2).

A line ends with CRLF, LF or CR; an event ends with an empty line. Nothing here changes or decodes the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Largest unfinished event that is held.
MAX_UNFINISHED = 1024 * 1024

BOM = b"\xef\xbb\xbf"
#: An event's end with the empty lines that follow; some of them may come with the next read.
_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)[\r\n]*+")
_EMPTY_LINES = re.compile(rb"[\r\n]++")
_LINE = re.compile(rb"\r\n|\n|\r")


class EventTooLong(Exception):
    """An event has more than ``MAX_UNFINISHED`` bytes."""


class Framer:
    """A splitter that cuts reads where events end and holds the unfinished rest."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def between_events(self) -> bool:
        """Whether a comment may be inserted here."""
        return not self._held

    @property
    def in_comment(self) -> bool:
        """Whether the unfinished rest is, so far, a comment."""
        return self._held.startswith(b":")

    def push(self, data: bytes) -> bytes:
        """The events that this read completes, unchanged.

        :raises EventTooLong: the unfinished rest is too long.
        """
        held = self._held
        if not held:
            if data.endswith(b"\n\n"):  # nearly every read
                return data
            end = _last_end(data, 0)
            if end == 0 and not data.strip(b"\r\n"):
                return data  # the rest of an event's end, or idle empty lines
            held += data[end:]
            data = data[:end]
        else:
            start = max(0, len(held) - 3)
            held += data
            end = _last_end(held, start)
            data = bytes(held[:end])
            del held[:end]
        if held and not held.strip(b"\r\n"):
            data += held
            held.clear()
        if len(held) > MAX_UNFINISHED:
            raise EventTooLong
        return data

    def rest(self) -> bytes:
        """The rest when the stream has ended: an event without its end, or nothing."""
        left = bytes(self._held)
        self._held.clear()
        return left


def _last_end(data: bytes | bytearray, start: int) -> int:
    """The position after the last finished event, looking from ``start``; 0 if there is none."""
    if data.find(b"\r", start) < 0:
        return data.rfind(b"\n\n", start) + 2 if data.find(b"\n\n", start) >= 0 else 0
    end = 0
    for match in _END.finditer(data, start):
        end = match.end()
    return end


def events(block: bytes) -> Iterator[bytes]:
    """The events of a block of whole events, each with its end, so that joining them gives the block."""
    start = 0
    if rest := _EMPTY_LINES.match(block):  # rest of the end of an earlier event
        yield rest[0]
        start = rest.end()
    for match in _END.finditer(block, start):
        yield block[start : match.end()]
        start = match.end()
    if start < len(block):
        yield block[start:]


def parse(event: bytes) -> tuple[bytes, bytes | None]:
    """An event's type (empty when it has none) and its data; None without a data line, as for a comment."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and event.find(b"\r") < 0:
        return b"", event[6:-2]  # one line, as LiteLLM writes it
    kind = b""
    data: list[bytes] = []
    for line in _LINE.split(event.removeprefix(BOM)):
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif name == b"event":
            kind = value.removeprefix(b" ")
    return kind, b"\n".join(data) if data else None
