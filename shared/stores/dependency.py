"""One log line when a dependency stops answering, for each reason, and one when it answers again."""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.telemetry import logs

_log = logs.logger("dependency")

#: Seconds without a failure after which an answer counts as recovery, so that a dependency that fails now and then does
#: not fill the log with pairs of lines.
SETTLED = 2.0


class Dependency:
    """The state of a dependency, for the log and readiness: whether it answers, and otherwise why not.

    :param name: ``postgres``, ``redis``, ``litellm``, ``fxa`` or ``auth``.
    """

    __slots__ = ("_back_at", "_failed_at", "_now", "_since", "_told", "name", "reason")

    def __init__(self, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.reason: str | None = None  #: why it does not answer; None while it does
        self._now = now
        self._since = self._failed_at = 0.0
        self._back_at: float | None = None  # of the first answer since the last failure
        self._told: set[str] = set()  # the reasons of this outage that have been logged

    def failed(self, reason: str) -> None:
        """:param reason: one line for the log and readiness: never a credential, nor the text of a statement."""
        self._failed_at = self._now()
        self._back_at = None
        if self.reason is None:
            self._since = self._failed_at
        self.reason = reason
        if reason not in self._told:
            self._told.add(reason)
            _log.error("dependency_out", dependency=self.name, reason=reason)

    def answered(self) -> None:
        if self.reason is None:
            return
        now = self._now()
        if self._back_at is None:
            self._back_at = now
        if now - self._failed_at >= SETTLED:
            _log.info("dependency_back", dependency=self.name, after_s=round(self._back_at - self._since, 1))
            self.reason = None
            self._told.clear()
