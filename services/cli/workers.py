"""Several processes of one service on one port, each with its own ops port."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from services.local.process import Program
from shared.telemetry import logs

_INDEX = "MLPA_WORKER_INDEX"
#: Seconds. A worker that died sooner than this is started again only after a pause.
_SHORT_LIFE = 5.0

_log = logs.logger("workers")


def is_worker() -> bool:
    return _INDEX in os.environ


def index() -> int:
    """The index of this process among the workers; 0 if it is alone."""
    return int(os.environ.get(_INDEX, "0"))


def run(name: str, count: int) -> int:
    """Start workers and keep them running until a signal; forwards it, and waits for their drain. SIGHUP is passed on.

    :returns: 0, or the first exit code of a worker that could not end well.
    """
    children: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
    stopping = False

    def start(number: int) -> None:
        # Guarded: a worker drains when this process is gone, however it ended
        argv = (sys.executable, "-P", "-m", "services.cli.main", name)
        command = Program(name, argv, death_signal=signal.SIGTERM).guarded()
        # The worker inherits that SIGHUP is blocked, so that one which comes before it can take it waits
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        child = subprocess.Popen(command, env={**os.environ, _INDEX: str(number)})  # noqa: S603  our own command
        children[number] = (child, time.monotonic())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        if stopping:  # the signal came while it was being started
            _signal(child, signal.SIGTERM)

    def forward(received: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        pass_on(received, None)

    def pass_on(received: int, _frame: FrameType | None) -> None:
        for child, _ in children.values():
            _signal(child, received)

    for received in (signal.SIGTERM, signal.SIGINT):
        signal.signal(received, forward)
    signal.signal(signal.SIGHUP, pass_on)
    for number in range(count):
        if not stopping:
            start(number)
    worst = 0
    while children:
        pid, status = os.wait()
        ended = next((n for n, (child, _) in children.items() if child.pid == pid), None)
        if ended is None:
            continue
        child, started = children.pop(ended)
        code = os.waitstatus_to_exitcode(status)
        child.returncode = code
        if stopping:
            worst = worst or (code if code >= 0 else 128 - code)  # as a shell says it of a signal
            continue
        _log.error("worker_ended", worker=ended, exit_code=code)
        lived = time.monotonic() - started
        if lived < _SHORT_LIFE:
            if code == 2:  # it can't start with this configuration, and neither can another
                forward(signal.SIGTERM, None)
                worst = code
                continue
            time.sleep(_SHORT_LIFE - lived)
        if not stopping:
            start(ended)
    return worst


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    """Signal a worker. ``Popen.send_signal`` would take the exit status of one that has just died from ``os.wait``."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, number)
