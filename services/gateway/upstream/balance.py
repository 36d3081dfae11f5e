"""The choice of the LiteLLM instance for the next request.

The instance with the fewest open requests for its weight is chosen. An instance is out after two failed health checks
without an answer between them, and for a while (doubling) after a failed connection; when it comes back, its share
grows over some seconds. When all look dead the checks may be wrong, so a few requests are tried anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from yarl import URL

#: Consecutive failed checks that take an instance out.
FAILURES_TO_OUT = 2
#: Seconds that a failed connection keeps an instance out: the first, the most.
FIRST_PENALTY, MAX_PENALTY = 0.5, 30.0
#: Concurrent requests that an instance gets while all instances are out.
MAX_TRIED = 32
#: Seconds until a returning instance has its full share, and the share that it begins with.
SLOW_RETURN, LEAST_WEIGHT = 10.0, 0.1


class Instance:
    """One instance of LiteLLM."""

    __slots__ = ("_now", "_penalty", "_returned", "failed_checks", "open", "out_until", "tried", "url")

    def __init__(self, url: URL, now: Callable[[], float] = time.monotonic) -> None:
        self.url = url
        self.open = 0
        #: Unanswered requests that were sent to it while it was out.
        self.tried = 0
        self.failed_checks = 0
        self.out_until = 0.0
        self._penalty = 0.0
        self._returned = float("-inf")
        self._now = now

    @property
    def healthy(self) -> bool:
        return self.failed_checks < FAILURES_TO_OUT

    def check_failed(self) -> None:
        self.failed_checks += 1

    def check_passed(self) -> None:
        if not self.healthy:
            self._returned = self._now()
        self.failed_checks = 0

    def connect_failed(self) -> None:
        self._penalty = min(MAX_PENALTY, self._penalty * 2 or FIRST_PENALTY)
        self.out_until = self._now() + self._penalty

    def answered(self) -> None:
        """Record an answered request, which counts as a passed check."""
        self.check_passed()
        if self._penalty:
            self._penalty = 0.0
            self._returned = self._now()

    def load(self, now: float) -> float:
        """Open requests, with one more, divided by the weight."""
        weight = LEAST_WEIGHT + (1 - LEAST_WEIGHT) * (now - self._returned) / SLOW_RETURN
        return (self.open + 1) / min(1.0, weight)


class Balancer:
    """The instances of LiteLLM, and the choice among them.

    :param urls: base URLs, at least one.
    """

    def __init__(self, urls: list[URL], now: Callable[[], float] = time.monotonic) -> None:
        self.instances = [Instance(url, now) for url in urls]
        self._now = now
        self._turn = 0

    @property
    def healthy(self) -> bool:
        return any(instance.healthy for instance in self.instances)

    @property
    def accepts(self) -> bool:
        """Whether a request would be sent now: an instance is healthy, or may still be tried."""
        return any(instance.healthy or instance.tried < MAX_TRIED for instance in self.instances)

    def pick(self, tried: set[Instance] | None = None) -> Instance | None:
        """The instance for a request; None if all remaining ones are out or were tried.

        A single instance is never out because of a failed connection: there is no other.
        """
        if len(self.instances) == 1:
            only = self.instances[0]
            return only if (only.healthy or only.tried < MAX_TRIED) and not tried else None
        now = self._now()
        usable = [each for each in self.instances if each.healthy] or [
            each for each in self.instances if each.tried < MAX_TRIED
        ]
        if tried:
            usable = [each for each in usable if each not in tried]
        ready = [each for each in usable if each.out_until <= now] or usable
        if not ready:
            return None
        self._turn += 1
        start = self._turn % len(ready)
        return min(ready[start:] + ready[:start], key=lambda each: each.load(now))
