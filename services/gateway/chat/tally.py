"""What a relayed stream has brought: usage, tool calls, finish reasons, how much text, an error, its end.

``Tally.read`` looks at finished events and says which bytes go on to the client: all of them, but for the usage
chunk that only the gateway asked for, an error event, and what follows either an error or ``[DONE]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from services.gateway.budget.models import Usage
from services.gateway.chat import sse
from services.gateway.chat.prompt import text_bytes, utf8_length
from services.gateway.upstream.facts import cost_of


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
    """As much of a chunk, or of a whole answer, as counts."""

    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_one = msgspec.json.Decoder(Chunk)
_many = msgspec.json.Decoder(list[Chunk])
_OPAQUE = Chunk()


class Tally:
    """:param show_usage: the client asked for the usage chunk itself.
    :param choices: how many it asked for.
    """

    __slots__ = (
        "_choices",
        "_show_usage",
        "_usage",
        "cost",
        "done",
        "error",
        "finished",
        "over",
        "started",
        "text",
        "tools",
    )

    def __init__(self, *, show_usage: bool = True, choices: int = 1) -> None:
        self._show_usage = show_usage
        self._choices = choices
        #: Any event came but for comments and errors.
        self.started = False
        self._usage: list[int] | None = None
        #: What LiteLLM says in a usage chunk that the answer cost, in USD.
        self.cost: Decimal | None = None
        #: UTF-8 bytes of content, reasoning and tool arguments.
        self.text = 0
        #: (choice, call) of each tool call.
        self.tools: set[tuple[Any, Any]] = set()
        #: Finish reason by choice.
        self.finished: dict[Any, str] = {}
        #: The error object that an event brought.
        self.error: Any = None
        #: ``[DONE]`` was seen.
        self.done = False
        #: It was, or an error: nothing after that counts or goes on.
        self.over = False

    @property
    def complete(self) -> bool:
        """Whether every choice came to its end."""
        return len(self.finished) >= self._choices

    @property
    def usage(self) -> Usage | None:
        """What was reported; where several chunks did, the most of each number, since they are running totals.

        None when it can't be true: there is text, which is said to have cost no token.
        """
        if self._usage is None or (self.text and not self._usage[1]):
            return None
        return Usage(*self._usage)

    def read(self, block: bytes) -> bytes:
        """Take in whole events. Returns what goes on to the client."""
        if not block.startswith(b"data: {"):
            return self._read_each(block)
        chunks: Sequence[Chunk]
        # The plain cases. A raw newline can't stand in JSON, so what looks like the bound of two events is one;
        # and what is not so plain doesn't decode, or holds what the slow way looks at.
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
                    # what most chunks are made of
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
        """Take in an event that the stream's end left without its end; it gets one, or is dropped as a fragment."""
        _, data = sse.parse(rest)
        if data is None or (data.strip() != b"[DONE]" and _decode(data) is _OPAQUE):
            return b""
        return self.read(rest + (b"\n" if rest.endswith((b"\n", b"\r")) else b"\n\n"))

    def read_answer(self, body: bytes) -> None:
        """Take in a whole answer that is not a stream."""
        chunk = _decode(body)
        self._count_all(chunk)
        self._read_usage(chunk.usage)
        self.error = chunk.error
        self.started = chunk is not _OPAQUE

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
            self.text += len(data)  # nothing that can be read: no more tokens than bytes
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
                # the same text under two names, where a server sends both
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
        """What can't be read is no usage: else it would be an answer for nothing."""
        prompt_tokens, completion_tokens = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
        if prompt_tokens is None or completion_tokens is None:
            return
        self.cost = cost_of(usage.get("cost")) or self.cost
        prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
        written = _tokens(usage, "cache_creation_input_tokens"), _tokens(prompt, "cache_creation_tokens")
        reasoned, total = _tokens(completion, "reasoning_tokens") or 0, _tokens(usage, "total_tokens") or 0
        numbers = [
            prompt_tokens,
            # some providers leave the reasoning out of their completion tokens
            max(completion_tokens, reasoned, total - prompt_tokens),
            max(number or 0 for number in written),
            reasoned,
        ]
        self._usage = numbers if self._usage is None else [max(pair) for pair in zip(self._usage, numbers, strict=True)]


def _tokens(numbers: Any, name: str) -> int | None:
    value = numbers.get(name) if isinstance(numbers, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return None
    return int(value)


def _key(index: Any) -> Any:
    return index if isinstance(index, int | str) else 0


def _says_something(data: bytes) -> bool:
    """Whether an event with usage is more than a usage chunk: some choice ends in it, or brings anything at all."""
    try:
        choices = msgspec.json.decode(data).get("choices")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True  # something is in a part that the tally did not have to read
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
    """A chunk, read as far as it can be; ``_OPAQUE`` when it is no JSON object at all."""
    try:
        return _one.decode(data)
    except msgspec.ValidationError:
        return _salvage(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _OPAQUE


def _salvage(data: bytes) -> Chunk:
    """A chunk of which a member has not the usual shape."""
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
            yield _Choice(delta=_Delta(content=choice))  # its strings count as content, keys and all
