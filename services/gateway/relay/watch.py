"""The timer of one request, and the way to end it from outside.

There is one lazily moved timer per request instead of a timeout per read: data only records the time. Ending a request
from outside (a time limit, a block, a drain) cancels its task; the error left here distinguishes that from a client
that left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.gateway.errors import UpstreamTimeout
from services.gateway.settings import GatewaySettings
from shared.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Coroutine

_NEVER = float("inf")


class Watch:
    """The watch of one running request.

    :param deadline: seconds that the request may take; 0 for no limit.
    :param on_quiet: called after each ``keepalive_seconds`` of silence; the coroutine runs as a task.
    :param backlog: returns the bytes that wait for the client in this process.
    :param drop: drops the client's connection, which cancels the request.
    :param revoked: ends the request with its result, should there be one.
    """

    __slots__ = (
        *("_backlog", "_deadline", "_drop", "_loop", "_on_quiet", "_quiet", "_revoked", "_settings"),
        *("_spoke", "_stuck", "_stuck_since", "_task", "_timer", "dropped", "error", "seen"),
        *("writing",),
    )

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        deadline: float,
        on_quiet: Callable[[], Coroutine[None, None, None]] | None,
        backlog: Callable[[], int],
        drop: Callable[[], None],
        revoked: asyncio.Future[ServiceError],
    ) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._on_quiet, self._backlog, self._drop = on_quiet, backlog, drop
        #: Loop time of the last data, set by reads and finished writes.
        self.seen = self._spoke = self._loop.time()
        self._deadline = self.seen + deadline if deadline else _NEVER
        #: A write to the client is under way, which may wait for the client.
        self.writing = False
        self._stuck = -1
        self._stuck_since = self.seen
        #: The error that ended the request from outside.
        self.error: ServiceError | None = None
        #: The client took no data for too long.
        self.dropped = False
        self._quiet: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._revoked = revoked
        revoked.add_done_callback(self._lost_right)
        self._arm()

    def touch(self) -> None:
        """Record that data arrived."""
        self.seen = self._loop.time()

    def end(self, error: ServiceError) -> None:
        """End the request with this error, unless it is over or already ending."""
        if self.error is None and self._timer is not None and self._task is not None:
            self.error = error
            self._task.cancel()

    def caught(self) -> ServiceError | None:
        """The error of a cancellation by ``end``; None if the client left or the task was cancelled otherwise."""
        if self.error is not None and self._task is not None and self._task.uncancel() == 0:
            return self.error
        return None

    def stop(self) -> None:
        """Stop watching: the request is over."""
        self._revoked.remove_done_callback(self._lost_right)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None

    def _lost_right(self, revoked: asyncio.Future[ServiceError]) -> None:
        self.end(revoked.result())

    def _arm(self) -> None:
        settings, now = self._settings, self._loop.time()
        at = min(self._deadline, self.seen + settings.streaming_timeout_seconds, now + settings.slow_client_seconds)
        if self._on_quiet is not None:
            at = min(at, max(self.seen, self._spoke) + settings.keepalive_seconds)
        self._timer = self._loop.call_at(max(at, now + 0.001), self._tick)

    def _tick(self) -> None:
        settings, now = self._settings, self._loop.time()
        if now >= self._deadline:
            self.end(UpstreamTimeout("The answer took too long."))
        elif self.writing:
            self._look_at_client(now)
        elif now - self.seen >= settings.streaming_timeout_seconds:
            self.end(UpstreamTimeout())
        elif self._on_quiet is not None and now - max(self.seen, self._spoke) >= settings.keepalive_seconds:
            self._spoke = now
            if self._quiet is None or self._quiet.done():
                self._quiet = self._loop.create_task(self._on_quiet())
        if self.error is None and not self.dropped:
            self._arm()

    def _look_at_client(self, now: float) -> None:
        waiting = self._backlog()
        self.seen = now  # the wait is not LiteLLM's silence
        if waiting != self._stuck:
            self._stuck, self._stuck_since = waiting, now
        elif now - self._stuck_since >= self._settings.slow_client_seconds:
            self.dropped = True
            self._drop()
