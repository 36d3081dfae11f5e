"""A limit on users whose requests are refused repeatedly before any rate counts them."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from types import TracebackType

from services.gateway.errors import InvalidModel, InvalidRequest, RateLimited, RequestTooLarge

#: So many refusals within this many seconds close the door to a user for as long.
MOST_REFUSALS, SECONDS = 10, 10.0
#: Users that are remembered: those refused last.
_REMEMBERED = 10_000


class Door:
    """The limit on refused requests: validating one costs time that no rate limit counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, user: str) -> None:
        """:raises RateLimited: the door is closed to this user."""
        times = self._refused.get(user)
        if times is not None and len(times) == MOST_REFUSALS and times[-1] - times[0] <= SECONDS:
            left = times[-1] + SECONDS - self._clock()
            if left > 0:
                raise RateLimited("Too many of your requests were refused.", reason="refusals", retry_after=left)
            del self._refused[user]

    def passing(self, user: str) -> Passing:
        """A block from a request's body to its admission. Refusals in it count.

        :raises RateLimited: the door is closed to this user.
        """
        self.check(user)
        return Passing(self, user)

    def count(self, user: str) -> None:
        """A request of this user was refused."""
        self._refused.setdefault(user, deque(maxlen=MOST_REFUSALS)).append(self._clock())
        self._refused.move_to_end(user)
        if len(self._refused) > _REMEMBERED:
            self._refused.popitem(last=False)


class Passing:
    """The block of ``Door.passing``."""

    __slots__ = ("_door", "_user")

    def __init__(self, door: Door, user: str) -> None:
        self._door, self._user = door, user

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and isinstance(error, InvalidRequest | InvalidModel | RequestTooLarge):
            self._door.count(self._user)
