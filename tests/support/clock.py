"""A clock that only tests move."""

from __future__ import annotations


class Clock:
    """Answers the time that a test has set, in seconds."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
