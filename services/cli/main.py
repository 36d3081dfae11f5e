"""The entry point of the command ``mlpa``: signals first, and then the imports, which take a second."""

from __future__ import annotations

import signal
import sys
from types import FrameType

#: What a shell says of a command that SIGTERM ended before it was done.
TERMINATED = 128 + signal.SIGTERM


def main() -> None:
    # The first process of a container has no default actions: a SIGTERM that nobody handles is lost.
    signal.signal(signal.SIGTERM, _terminated)
    from services.cli.commands import run

    run()


def _terminated(_number: int, _frame: FrameType | None) -> None:
    """For as long as nothing else handles it: what has begun is undone on the way out, as after Ctrl-C."""
    sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
