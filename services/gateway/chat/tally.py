"""The tally of a relayed stream: usage, tool calls, finish reasons, amount of text, error, end.

``Tally.read`` reads finished events and returns the bytes for the client: all but the usage chunk that only the
gateway asked for, an error event, and anything after an error or ``[DONE]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from services.gateway.budget.models import Usage
from services.gateway.errors import UpstreamError
from services.gateway.relay import sse
from services.gateway.relay.answers import token_count
from services.gateway.relay.prompt import text_bytes, utf8_length
from services.gateway.upstream.routing import cost_of


class _Function(msgspec.Struct, gc=False):
    arguments: Any = None


class _ToolCall(msgspec.Struct, gc=False):
    index: Any = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct, gc=False):
    index: Any = 0
    delta: _Delta | None = None
    message: _Delta | None = None  # of an answer that is not a stream
    finish_reason: Any = None


class Chunk(msgspec.Struct, gc=False):
    """The members of a chunk, or of a whole answer, that are counted."""

    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_one = msgspec.json.Decoder(Chunk)
_many = msgspec.json.Decoder(list[Chunk])
_OPAQUE = Chunk()
#: The end of a stream, and the beginning of a chunk behind another event.
_DONE = b"\n\ndata: [DONE]\n\n"
_NEXT = b"\n\ndata: {"


class Tally:
    """The running count of one answer.

    :param show_usage: the client asked for the usage chunk itself.
    :param choices: the number of choices that it asked for.
    """

    __slots__ = (
        *("_choices", "_show_usage", "_usage", "cost", "done", "error", "finished", "over"),
        *("started", "text", "tools"),
    )

    def __init__(self, *, show_usage: bool = True, choices: int = 1) -> None:
        self._show_usage, self._choices = show_usage, choices
        #: An event arrived that is neither a comment nor an error.
        self.started = False
        self._usage: list[int] | None = None
        #: Cost of the answer in USD, by LiteLLM's usage chunk.
        self.cost: Decimal | None = None
        #: UTF-8 bytes of content, reasoning and tool arguments.
        self.text = 0
        #: (choice, call) of each tool call.
        self.tools: set[tuple[Any, Any]] = set()
        #: Finish reason by choice.
        self.finished: dict[Any, str] = {}
        #: The error object of an event.
        self.error: Any = None
        #: ``[DONE]`` has been seen.
        self.done = False
        #: ``[DONE]`` or an error has been seen: nothing after it is counted or relayed.
        self.over = False

    @property
    def complete(self) -> bool:
        """Whether every choice has finished."""
        return len(self.finished) >= self._choices

    @property
    def usage(self) -> Usage | None:
        """The reported usage; of several reports the largest of each number, since they are running totals.

        None if it can't be true: it counts no tokens although there is text.
        """
        if self._usage is None or (self.text and not self._usage[1]):
            return None
        return Usage(*self._usage)

    def read(self, block: bytes) -> bytes:
        """Read whole events. Returns the bytes for the client."""
        if block.endswith(_DONE):  # the usage is in the event before; only these two need a closer look
            start = block.rfind(_NEXT, 0, -len(_DONE)) + 2
            if start > 2:
                kept = self._read_plain(block[:start])
                return kept if self.over else kept + self._read_each(block[start:])
        return self._read_plain(block)

    def _read_plain(self, block: bytes) -> bytes:
        """Read events that are likely to be plain: chunks of text on one line each."""
        if not block.startswith(b"data: {"):
            return self._read_each(block)
        chunks: Sequence[Chunk]
        # The plain cases. JSON has no raw newline, so anything that looks like the bound of two events is one.
        # Cases that are less plain don't decode, or have a member that only the slow way reads.
        try:
            if block.find(b"\n", 0, -2) < 0:
                chunks = (_one.decode(block[6:]),)
            else:
                chunks = _many.decode(b"[%b]" % block[6:].replace(b"\n\ndata: ", b","))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._read_each(block)
        for chunk in chunks:
            if chunk.usage is not None or chunk.error is not None:
                return self._read_each(block)
        self.started = True
        text = 0
        for chunk in chunks:
            for choice in chunk.choices or ():
                delta = choice.delta
                if choice.finish_reason is None and delta is not None and delta.content.__class__ is str:
                    # most chunks have only this
                    content: str = delta.content
                    if (
                        None
                        is delta.tool_calls
                        is delta.reasoning_content
                        is delta.reasoning
                        is delta.refusal
                        is delta.function_call
                    ):
                        text += len(content) if content.isascii() else utf8_length(content)
                        continue
                self._count(choice)
        self.text += text
        return block

    def read_last(self, rest: bytes) -> bytes:
        """Read the last event of a stream that lacks its end; it gets one, or is dropped as a fragment."""
        _, data = sse.parse(rest)
        if data is None or (data.strip() != b"[DONE]" and _decode(data) is _OPAQUE):
            return b""
        return self.read(rest + (b"\n" if rest.endswith((b"\n", b"\r")) else b"\n\n"))

    def read_answer(self, body: bytes) -> bytes:
        """Read a whole answer that is not a stream. Returns the body for the client.

        :raises UpstreamError: it is not a JSON object.
        """
        chunk = _decode(body)
        if chunk is _OPAQUE:
            raise UpstreamError("The model's answer is not JSON.")
        self._count_all(chunk)
        self._read_usage(chunk.usage)
        self.error = chunk.error
        return body

    def _read_each(self, block: bytes) -> bytes:
        kept = []
        for event in sse.events(block):
            if self.over:
                break
            if self._read_one(event):
                kept.append(event)
        return b"".join(kept)

    def _read_one(self, event: bytes) -> bool:
        kind, data = sse.parse(event)
        if data is None:
            return True
        if data.strip() == b"[DONE]":
            self.started = self.done = self.over = True
            return True
        chunk = _decode(data)
        if chunk.error is not None or kind == b"error":
            self.error = chunk.error if chunk.error is not None else {}
            self.over = True
            return False
        self.started = True
        if chunk is _OPAQUE:
            self.text += len(data)  # unreadable: no more tokens than bytes
            return True
        self._count_all(chunk)
        if chunk.usage is None:
            return True
        self._read_usage(chunk.usage)
        return self._show_usage or _says_something(data)

    def _count_all(self, chunk: Chunk) -> None:
        for choice in chunk.choices or ():
            self._count(choice)

    def _count(self, choice: _Choice) -> None:
        delta = choice.delta or choice.message
        if delta is not None:
            content = delta.content
            if content.__class__ is str:
                self.text += len(content) if content.isascii() else utf8_length(content)
            elif content is not None:
                self.text += text_bytes(content)
            if delta.reasoning_content is not None or delta.reasoning is not None:
                # some servers send the same text under two names
                self.text += max(text_bytes(delta.reasoning_content), text_bytes(delta.reasoning))
            if delta.refusal is not None:
                self.text += text_bytes(delta.refusal)
            if delta.tool_calls:
                self._count_tools(choice, delta.tool_calls)
            if delta.function_call is not None:
                self.text += text_bytes(delta.function_call.arguments)
                self.tools.add((_key(choice.index), "function"))
        reason = choice.finish_reason
        if reason is not None:
            self.finished[_key(choice.index)] = reason if isinstance(reason, str) else "other"

    def _count_tools(self, choice: _Choice, calls: list[_ToolCall]) -> None:
        for position, call in enumerate(calls):
            place = position if call.index is None else _key(call.index)
            self.tools.add((_key(choice.index), place))
            if call.function is not None:
                self.text += text_bytes(call.function.arguments)

    def _read_usage(self, usage: Any) -> None:
        """Take a reported usage. One that can't be read counts as none: otherwise the answer would be free."""
        prompt_tokens, completion_tokens = token_count(usage, "prompt_tokens"), token_count(usage, "completion_tokens")
        if prompt_tokens is None or completion_tokens is None:
            return
        self.cost = cost_of(usage.get("cost")) or self.cost
        prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
        written = token_count(usage, "cache_creation_input_tokens"), token_count(prompt, "cache_creation_tokens")
        reasoned, total = token_count(completion, "reasoning_tokens") or 0, token_count(usage, "total_tokens") or 0
        numbers = [
            prompt_tokens,
            # some providers don't count reasoning in their completion tokens
            max(completion_tokens, reasoned, total - prompt_tokens),
            max(number or 0 for number in written),
            reasoned,
        ]
        self._usage = numbers if self._usage is None else [max(pair) for pair in zip(self._usage, numbers, strict=True)]


def _key(index: Any) -> Any:
    return index if isinstance(index, int | str) else 0


def _says_something(data: bytes) -> bool:
    """Whether an event with usage is more than a usage chunk: a choice ends in it or has content."""
    try:
        choices = msgspec.json.decode(data).get("choices")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True  # there is content in a part that the tally did not read
    if isinstance(choices, list):
        return not all(isinstance(choice, dict) and _is_bare(choice) for choice in choices)
    return choices is not None


def _is_bare(choice: dict[str, Any]) -> bool:
    """Whether a choice has at most its index, and a delta with at most a role and empty content."""
    delta = choice.get("delta")
    if not isinstance(delta, dict | None):
        return False
    if any(value is not None for name, value in choice.items() if name not in ("index", "delta")):
        return False
    return delta is None or all(
        value is None or name == "role" or (name == "content" and value in ("", [])) for name, value in delta.items()
    )


def _decode(data: bytes) -> Chunk:
    """A chunk, read as far as possible; ``_OPAQUE`` if it is not a JSON object."""
    try:
        return _one.decode(data)
    except msgspec.ValidationError:
        return _salvage(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _OPAQUE


def _salvage(data: bytes) -> Chunk:
    """A chunk with a member of an unusual shape."""
    try:
        given = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _OPAQUE
    if not isinstance(given, dict):
        return _OPAQUE
    choices = given.get("choices")
    return Chunk(
        choices=list(_salvage_choices(choices)) if isinstance(choices, list) else None,
        usage=given.get("usage"),
        error=given.get("error"),
    )


def _salvage_choices(choices: list[Any]) -> Iterator[_Choice]:
    for choice in choices:
        try:
            yield msgspec.convert(choice, _Choice)
        except msgspec.ValidationError:
            yield _Choice(delta=_Delta(content=choice))  # all its strings count as content, keys included
