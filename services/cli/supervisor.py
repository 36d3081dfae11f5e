"""The supervisor of ``mlpa up``: starts parts, waits until they are ready, restarts and stops them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from services.cli.console import Console, Step
from services.local.files import write_private
from services.local.process import Process, ProcessError, Program

POLL_SECONDS = 0.05
RESTART_SECONDS = 5.0  # long enough to show in the services' readiness, which is cached for 1 s
LONGEST_RESTART_SECONDS = 60.0
STABLE_SECONDS = 30.0  # after running for so long a part gets the short delay again
STATE_FILE = "system.json"


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """The addresses of a local system, and the settings of its services."""

    gateway_url: str
    auth_url: str
    fxa_url: str  # without /v1
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    data: Path
    admin_key: str = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)  # the settings of the services; it holds secrets

    def save(self) -> None:
        """Write it into the data folder (mode 0600), for the commands that talk to a running system."""
        write_private(self.data / STATE_FILE, json.dumps(asdict(self), indent=1, default=str))

    def forget(self) -> None:
        (self.data / STATE_FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, data: Path) -> Self | None:
        """The system that runs on a data folder, if any that the caller may know of."""
        try:
            members = json.loads((data / STATE_FILE).read_text())
        except (FileNotFoundError, PermissionError):
            return None
        return cls(**{**members, "data": Path(members["data"])})


@dataclass(slots=True)
class Part:
    """A process of the system.

    ``rank`` orders the parts: a higher one needs the lower ones, and is stopped before them. ``ready`` is asked in a
    thread, often; it may block for a second or two.
    """

    name: str
    rank: int
    process: Process
    ready: Callable[[], bool]
    address: str
    timeout: float = 60
    stop_timeout: float = 10
    was_ready: bool = False
    started: float = 0
    restarts: int = 0


class Supervisor:
    """A set of parts, each started once by ``start`` and kept alive by ``watch``."""

    def __init__(self, console: Console, *, restart_seconds: float = RESTART_SECONDS) -> None:
        self.console = console
        self._parts: list[Part] = []
        self._restart_seconds = restart_seconds
        self._hurry = False

    async def start(self, part: Part) -> None:
        """Start a part and wait until it is ready.

        :raises ProcessError: it did not get ready, or another part died meanwhile; with the end of the log.
        """
        self._parts.append(part)
        with self.console.step(part.name, "starting") as step:
            await self._start(part, step)
            step.done(part.address)
        part.was_ready = True

    async def run(self, program: Program, log: Path, step: Step, progress: Callable[[], str] | None = None) -> None:
        """Run a program to its end.

        :raises ProcessError: it failed, or a part died meanwhile; with the end of the log.
        """
        process = Process(program, log)
        process.start()
        try:
            while process.running:
                step.update(progress() if progress else None)
                self._raise_if_one_died()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            process.kill()
        if process.exit_reason != "exit code 0":
            raise ProcessError(f"{program.name} failed ({process.exit_reason}){process.tail()}")

    async def watch(self) -> None:
        """Restart every part that dies, after a delay which grows if it keeps dying; never returns."""
        async with asyncio.TaskGroup() as group:
            for part in self._parts:
                group.create_task(self._keep(part))

    async def stop(self) -> None:
        """Stop all parts, the highest rank first."""
        for part in sorted(self._parts, key=lambda part: part.rank, reverse=True):
            await self._stop(part)

    def hurry(self) -> None:
        """Make ``stop`` kill the parts that have not ended yet."""
        self._hurry = True

    async def _start(self, part: Part, step: Step | None = None) -> None:
        part.process.start()
        part.started = time.monotonic()
        while not await asyncio.to_thread(part.ready):
            if not part.process.running:
                raise _died(part)
            if time.monotonic() - part.started > part.timeout:
                raise ProcessError(f"{part.name} was not ready in {part.timeout:g} s{part.process.tail()}")
            if step is not None:
                step.update("waiting until it is ready")
                self._raise_if_one_died()
            await asyncio.sleep(POLL_SECONDS)

    def _raise_if_one_died(self) -> None:
        """Fail if a part has died. While the system starts, nothing is restarted: the part would die again."""
        for part in self._parts:
            if part.was_ready and not part.process.running:
                raise _died(part)

    async def _keep(self, part: Part) -> None:
        while True:
            if part.process.running:
                await asyncio.sleep(POLL_SECONDS)
                continue
            if time.monotonic() - part.started > STABLE_SECONDS:
                part.restarts = 0
            delay = min(self._restart_seconds * 2**part.restarts, LONGEST_RESTART_SECONDS)
            part.restarts += 1
            self.console.warn(part.name, f"died ({part.process.exit_reason}), starts again in {delay:g} s")
            await asyncio.sleep(delay)
            try:
                await self._start(part)
            except ProcessError as error:
                part.process.kill()
                self.console.warn(part.name, str(error))
            else:
                self.console.line("✔", part.name, f"is back, {part.address}", style="green")

    async def _stop(self, part: Part) -> None:
        process = part.process
        process.resume()
        if not process.running:
            return
        with self.console.step(part.name, "stopping") as step:
            process.signal(process.program.stop_signal)
            while process.running and step.seconds < part.stop_timeout and not self._hurry:
                step.update()
                await asyncio.sleep(POLL_SECONDS)
            if process.running:
                process.kill()
                step.done("killed")
            else:
                step.done("stopped")


def _died(part: Part) -> ProcessError:
    return ProcessError(f"{part.name} ended ({part.process.exit_reason}){part.process.tail()}")
