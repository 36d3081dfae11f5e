"""A circuit breaker: after consecutive failures it rejects all calls for a while, then lets one through as a probe.

closed ── failures in a row, or a wait that was asked for ──▶ open ── time ──▶ half-open (one probe)
   ▲                                                             ▲                    │
   └───────────────────────────── success ◀──────────────────────┴──── failure ◀──────┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum


class State(IntEnum):
    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerOpen(Exception):
    """The breaker rejected a call.

    :param retry_after: seconds after which it is worth trying again.
    """

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__("circuit breaker is open")


class Breaker:
    """A circuit breaker.

    :param failures: the number of consecutive failures that opens it.
    :param counts: the exceptions that are failures; one with a ``retry_after`` (seconds) opens it at once, for that
        long but ``longest_asked`` at most. All other exceptions show that the dependency works.
    :param first, longest: the seconds for which it stays open: first, then doubled at each failed probe up to longest.
    """

    def __init__(
        self,
        *,
        failures: int,
        counts: tuple[type[Exception], ...],
        clock: Callable[[], float],
        first: float = 5,
        longest: float = 30,
        longest_asked: float = 300,
        on_change: Callable[[State], None] = lambda _state: None,
    ) -> None:
        self._threshold = failures
        self._counts, self._clock, self._first = counts, clock, first
        self._longest, self._longest_asked, self._on_change = longest, longest_asked, on_change
        self._state = State.CLOSED
        self._failures = 0
        self._opened = 0  # how often since it was closed
        self._until = 0.0

    @property
    def state(self) -> State:
        return self._state

    def check(self) -> None:
        """:raises BreakerOpen: when a call would not be let through now."""
        if self._state is State.OPEN:
            remaining = self._until - self._clock()
            if remaining > 0:
                raise BreakerOpen(remaining)
        elif self._state is State.HALF_OPEN:
            raise BreakerOpen(1)

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call to the dependency.

        :raises BreakerOpen: the call was rejected.
        """
        self.check()
        probing = self._state is State.OPEN
        if probing:
            self._enter(State.HALF_OPEN)
        try:
            yield
        except self._counts as error:
            self._failed(probing, getattr(error, "retry_after", None))
            raise
        except Exception:
            self._succeeded(probing)
            raise
        except BaseException:  # cancelled: nothing was learned; the next call probes
            if probing:
                self._enter(State.OPEN)
            raise
        else:
            self._succeeded(probing)

    def _succeeded(self, probing: bool) -> None:
        if probing or self._state is State.CLOSED:  # an answer to a call from before it opened proves nothing
            self._failures = self._opened = 0
            self._enter(State.CLOSED)

    def _failed(self, probing: bool, asked: float | None) -> None:
        if not probing and self._state is not State.CLOSED:
            return
        self._failures += 1
        if asked is None and not probing and self._failures < self._threshold:
            return
        wait = min(self._first * 2**self._opened, self._longest)
        if asked is not None:
            wait = min(asked, self._longest_asked)
        self._opened = min(self._opened + 1, 16)
        self._until = self._clock() + wait
        self._enter(State.OPEN)

    def _enter(self, state: State) -> None:
        if state is not self._state:
            self._state = state
            self._on_change(state)
