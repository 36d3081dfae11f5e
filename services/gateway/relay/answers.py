"""Whole answers of LiteLLM: read, and held until their clients have taken them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from services.gateway.budget.models import Usage
from services.gateway.errors import RateLimited, Unavailable, UpstreamError
from services.gateway.upstream.client import MAX_ANSWER

T = TypeVar("T")

#: Bytes of large answers that a process holds at once, and those of a small one, which always has room.
MOST_BYTES, SMALL = 256 * 1024 * 1024, 64 * 1024
#: How many times the patience with a slow client it has to take the whole of a large answer.
_PATIENCES = 5


class Answers:
    """The large answers that this process holds."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.held = 0
        self.of_users: Counter[str] = Counter()

    def check(self, user_id: str) -> None:
        """
        :raises RateLimited: the user's own are a quarter of what there may be.
        :raises Unavailable: there is no room for another one of the largest.
        """
        if self.of_users.get(user_id, 0) >= self.most_bytes / 4:
            raise RateLimited("Too many of your answers wait to be taken.", reason="answers", retry_after=1)
        if self.held + MAX_ANSWER > self.most_bytes:
            raise Unavailable("Too many large answers are under way.")


class Held:
    """The bytes of one answer, which count for as long as this object lives."""

    def __init__(self, answers: Answers, user_id: str) -> None:
        self._answers, self._user_id = answers, user_id
        self._size = self._counted = 0

    def add(self, size: int) -> None:
        """:raises UpstreamError: there is no room for more of it, or half of what there may be is the user's own."""
        self._size += size
        if self._size > SMALL:
            self._count(self._size)
            answers = self._answers
            if answers.held > answers.most_bytes or answers.of_users[self._user_id] > answers.most_bytes / 2:
                raise UpstreamError("Too many large answers are under way.")

    def _count(self, size: int) -> None:
        of_users, change = self._answers.of_users, size - self._counted
        self._answers.held += change
        self._counted = size
        of_users[self._user_id] += change
        if not of_users[self._user_id]:
            del of_users[self._user_id]

    def __del__(self) -> None:
        if self._counted:
            self._count(0)


class LargeAnswer(web.Response):
    """An answer that a client may take slowly.

    :param held: its bytes.
    :param backlog: returns those that wait in this process.
    :param drop: called when they have not become fewer for ``patience`` seconds, and when some are left after
        five times that.
    """

    def __init__(
        self,
        body: bytes,
        headers: dict[str, str],
        held: Held,
        *,
        patience: float,
        backlog: Callable[[], int],
        drop: Callable[[], None],
    ) -> None:
        super().__init__(body=body, headers=headers)
        self._held: Held | None = held
        self._patience, self._backlog, self._drop = patience, backlog, drop

    async def write_eof(self, data: bytes = b"") -> None:
        writing, waiting = asyncio.create_task(super().write_eof(data)), -1
        loop = asyncio.get_running_loop()
        ends = loop.time() + _PATIENCES * self._patience
        try:
            while not (await asyncio.wait([writing], timeout=self._patience))[0]:
                if waiting == (waiting := self._backlog()) or loop.time() >= ends:
                    self._drop()
            await writing
        finally:
            writing.cancel()
            self.body = self._held = None  # aiohttp keeps the last response of an idle connection


class AnswerTally:
    """The count of an answer that is no stream and has no text of the model's own.

    ``error`` is the error object in place of an answer.
    """

    cost: Decimal | None = None
    text = 0

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.error: Any = None


def read_answer(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode the members of an answer that matter.

    :raises UpstreamError: it is not an answer.
    """
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamError("The model's answer is not JSON.") from None


def token_count(numbers: Any, name: str) -> int | None:
    """A number of tokens within a usage object; None if it can't be one."""
    value = numbers.get(name) if isinstance(numbers, dict) else None
    return int(value) if value.__class__ in (int, float) and 0 <= value < 2**53 else None
