"""Standard output for log lines: a line that can't be written is lost and counted, and never fails or waits.

Python's own stream raises when the disk is full or the pipe's reader has gone, and waits when the reader is stuck; the
code that logs would fail or wait with it: a request, or the drain of the process.
"""

from __future__ import annotations

import atexit
import os
import select
import threading
from collections import deque

#: The most bytes that are kept for a slow reader.
MAX_WAITING = 1024 * 1024
#: The bytes that a ready pipe accepts at least without waiting (POSIX: PIPE_BUF, 4096 on Linux).
_PIECE = select.PIPE_BUF
#: Milliseconds that the process waits at its end for the reader to take the rest.
_LAST_PATIENCE = 1000


class Lines:
    """A text stream over a file descriptor, with the methods that structlog and logging use."""

    def __init__(self, descriptor: int) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        line = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._size + len(line) > MAX_WAITING:
                self.lost += 1
            else:
                self._waiting.append(line)
                self._size += len(line)
            self._send(0)
        return len(text)

    def flush(self) -> None:
        """Each line is written at once, if it can be."""

    def close(self) -> None:
        """Write the rest, if the reader takes it soon."""
        with self._lock:
            self._send(_LAST_PATIENCE)

    def _send(self, patience: int) -> None:
        try:
            while self._waiting and self._poll.poll(patience):
                line = self._waiting.popleft()
                written = os.write(self._descriptor, line[:_PIECE])
                self._size -= written
                if written < len(line):
                    self._waiting.appendleft(line[written:])
        except BlockingIOError:  # another process has filled the pipe
            self._waiting.appendleft(line)
        except OSError:
            self.lost += 1 + len(self._waiting)
            self._waiting.clear()
            self._size = 0


#: This process's own.
stdout = Lines(1)
atexit.register(stdout.close)
