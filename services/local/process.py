"""Child processes of a local run, which log to a file, always end, and never outlive the run.

A child dies with its parent even when that is killed with SIGKILL (Linux: guard.py sets PR_SET_PDEATHSIG), and it
has a session of its own, so that Ctrl-C in a terminal reaches only the parent, which then stops things in order.
The death signal is tied to the *thread* that starts the child: call ``start`` from the main thread.
"""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Self
from urllib.request import ProxyHandler, build_opener

GUARD = Path(__file__).with_name("guard.py")
POLL_SECONDS = 0.01
_PORTS = range(15_000, 32_000)
_port_numbers = itertools.count(secrets.randbelow(len(_PORTS)))  # so that a process is never given the same one twice


class ProcessError(Exception):
    """A child could not be started, or died. The message has the reason and the end of its log."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user account of a child."""

    uid: int
    gid: int

    @classmethod
    def current(cls) -> Self:
        return cls(os.getuid(), os.getgid())

    @classmethod
    def unprivileged(cls) -> Self:
        """``nobody`` for root, else the current user."""
        if os.getuid() != 0:
            return cls.current()
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid)

    @classmethod
    def owner(cls, path: Path) -> Self:
        uid = path.stat().st_uid
        return cls.current() if uid == os.getuid() else cls(uid, pwd.getpwuid(uid).pw_gid)


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run: an absolute path with arguments. ``env`` is the whole environment (None: the parent's)."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    account: Account = field(default_factory=Account.current)
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL  # what it gets when the parent dies

    def guarded(self) -> list[str]:
        """The argv that runs this program under guard.py."""
        numbers = (os.getpid(), self.death_signal, self.account.uid, self.account.gid)
        return [sys.executable, "-I", "-S", str(GUARD), *(str(int(number)) for number in numbers), *self.argv]


class Process:
    """One child. It can be started again after it ended, which is how tests restart a dependency."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program, self.log = program, log
        self._child: subprocess.Popen[bytes] | None = None
        self._pause: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid if self._child is not None and self.running else None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def exit_reason(self) -> str:
        """How it ended: "exit code 1", "killed by SIGKILL"."""
        code = self._child.poll() if self._child is not None else None
        if code is None:
            return "still running" if self._child is not None else "not started"
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def start(self) -> None:
        """Start it and return at once. Output is appended to the log."""
        if self.running:
            raise ProcessError(f"{self.program.name} runs already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            self._child = subprocess.Popen(  # noqa: S603 - argv is ours
                self.program.guarded(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.program.env,
                cwd=self.program.cwd,
                start_new_session=True,
            )

    def wait_ready(self, ready: Callable[[], bool], timeout: float = 20) -> None:
        """Block until ``ready()``.

        :raises ProcessError: the child ended first, or the time is over.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.running:
                raise ProcessError(f"{self.program.name} ended ({self.exit_reason}){self.tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.program.name} was not ready in {timeout:g} s{self.tail()}")
            time.sleep(POLL_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child; nothing when it has ended."""
        if self._child is not None:
            self._child.send_signal(number)

    def stop(self, timeout: float = 10) -> None:
        """Ask it to end, and kill it if it has not after ``timeout`` seconds."""
        self.resume()
        self.signal(self.program.stop_signal)
        if not self.wait(timeout):
            self.kill()

    def kill(self) -> None:
        """Kill the child, its descendants and its process group with SIGKILL, as a crash of the machine would."""
        if self._child is not None:
            if self._child.poll() is None:
                for pid in _suspend_family(self._child.pid):  # each backend of PostgreSQL has a group of its own
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.kill()
            self._child.wait()
        self.resume()

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within ``timeout`` seconds."""
        if self._child is not None:
            try:
                self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                return False
        return True

    def pause(self) -> None:
        """Freeze it with all its children: connections stay open and nothing answers, like a hung host.

        It is thawed by ``resume``, or when this process dies, by a shell that waits for the end of its input.
        """
        if self.pid is None or self._pause is not None:
            return
        family = _suspend_family(self.pid)
        pids = " ".join(str(pid) for pid in family)
        self._pause = subprocess.Popen(  # noqa: S603 - numbers only
            ["/bin/sh", "-c", f"read _; kill -CONT {pids} 2>/dev/null"], stdin=subprocess.PIPE, start_new_session=True
        )

    def resume(self) -> None:
        """End a pause."""
        if self._pause is not None:
            self._pause.communicate()
            self._pause = None

    def tail(self) -> str:
        """The end of the log, ready to be appended to an error message; empty when there is none."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
        return "".join(f"\n  | {line}" for line in text.splitlines()[-15:])


class Server(ABC):
    """A child that answers on a port. As a context manager it runs from start to stop."""

    process: Process
    ready_seconds: float = 20  # how long it may take to start

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @abstractmethod
    def initialise(self) -> None:
        """Make its files; called again, it changes nothing."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it answers."""

    def start(self) -> None:
        """Start it and block until it is ready.

        :raises ProcessError: it did not become so; the message has the end of its log.
        """
        self.initialise()
        self.process.start()
        self.process.wait_ready(self.ready, timeout=self.ready_seconds)

    def stop(self) -> None:
        """End it in its usual way."""
        self.process.stop()

    def kill(self) -> None:
        """Kill it with SIGKILL, as a crash would: anything only in memory is lost."""
        self.process.kill()

    def pause(self) -> None:
        """Freeze it: connections stay open and hang, and so do new ones."""
        self.process.pause()

    def resume(self) -> None:
        """End a pause."""
        self.process.resume()


def _suspend_family(pid: int) -> list[int]:
    """Stop a process and all its descendants with SIGSTOP; returns their pids."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # before its children are listed, so that it starts no more
    family = [pid]
    with suppress(FileNotFoundError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            family += _suspend_family(int(child))
    return family


def answers(url: str, timeout: float = 2) -> bool:
    """Whether a GET of a local address is answered with 200. Uses no proxy."""
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):
        return False


def free_port() -> int:
    """A free TCP port of 127.0.0.1, below those that Linux gives to outgoing connections, so that it remains free."""
    while True:
        port = _PORTS[next(_port_numbers) % len(_PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
