"""The output of ``mlpa up``: steps with their duration, live on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console as RichConsole
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

NAME_WIDTH = 12


class Step:
    """A step in progress. Without ``done`` it has failed, and the exception says why."""

    def __init__(self, console: Console, name: str, doing: str) -> None:
        self._console, self._name, self._doing = console, name, doing
        self._started = self._said = time.monotonic()
        self._result: str | None = None
        self._task: TaskID | None = console.progress.add_task(self._label()) if console.interactive else None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def update(self, doing: str | None = None) -> None:
        """Show the current action. Call it often, even without news, to show that a long wait is alive."""
        self._doing = doing or self._doing
        if self._task is not None:
            self._console.progress.update(self._task, description=self._label())
        elif time.monotonic() - self._said >= self._console.plain_interval:
            self._said = time.monotonic()
            self._console.line("·", self._name, f"{self._doing} ({self.seconds:.0f} s)", style="dim")

    def done(self, result: str) -> None:
        """Name the result, e.g. an address."""
        self._result = result

    def close(self) -> None:
        if self._task is not None:
            self._console.progress.remove_task(self._task)
            self._console.progress.refresh()
        if self._result is not None:
            self._console.line("✔", self._name, f"{self._result:<44} {self.seconds:5.1f} s", style="green")

    def _label(self) -> str:
        return f"{self._name:<{NAME_WIDTH}} {self._doing}"


class Console:
    """The lines on stdout. Nothing is parsed as markup, so that the end of a log shows unchanged.

    ``plain_interval`` is the time in seconds between two lines of a long step where there is no terminal.
    """

    def __init__(self, out: RichConsole | None = None, *, plain_interval: float = 10) -> None:
        self.plain_interval = plain_interval
        self.out = out or RichConsole(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.interactive = self.out.is_terminal
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self.out,
            transient=True,
            disable=not self.interactive,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    @contextmanager
    def step(self, name: str, doing: str) -> Iterator[Step]:
        """Show a step while the block runs."""
        if self.interactive and not self.progress.live.is_started:
            self.progress.start()
        step = Step(self, name, doing)
        try:
            yield step
        finally:
            step.close()
            if not self.progress.tasks:
                self.progress.stop()

    def heading(self, text: str) -> None:
        self.out.print(Text(f"\n{text}", style="bold"))

    def line(self, mark: str, name: str, text: str, *, style: str) -> None:
        """One line in the columns of the steps."""
        self.out.print(Text.assemble((f"  {mark} ", style), (f"{name:<{NAME_WIDTH}} ", "bold"), text))

    def note(self, text: str) -> None:
        self.out.print(Text(f"  {text}", style="dim"))

    def warn(self, name: str, text: str) -> None:
        self.line("!", name, text, style="yellow")

    def error(self, text: str) -> None:
        """Show the reason for the end; it may have several lines."""
        self.out.print(Text.assemble(("\n  ✘ ", "red"), text))
