"""The entry point of the command ``mlpa``: signals first, and then the imports, which take a second."""

from __future__ import annotations

import gc
import signal
import sys
from types import FrameType

#: A shell's exit code for a command that SIGTERM ended.
TERMINATED = 128 + signal.SIGTERM

#: New objects that start a garbage collection, and collections of a generation that start one of the next.
_COLLECTED_AFTER = (10_000, 20, 50)


def main() -> None:
    # The first process of a container has no default actions: an unhandled SIGTERM is lost.
    signal.signal(signal.SIGTERM, _terminated)
    if sys.argv[1:2] in (["auth"], ["gateway"]):  # where SIGHUP ends nothing, not even a start: it waits until then
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    gc.set_threshold(*_COLLECTED_AFTER)  # also for the imports, of which it would take a twentieth
    from services.cli.commands import run

    run()


def _terminated(_number: int, _frame: FrameType | None) -> None:
    """Exit as after Ctrl-C, undoing what has begun, until something else handles the signal."""
    sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
