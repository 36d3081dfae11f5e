"""The supervisor starts, watches, restarts and stops real processes, and reports it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from services.cli.console import Console
from services.cli.supervisor import Part, RunningSystem, Supervisor
from services.local.process import Process, ProcessError, Program, free_port
from services.local.valkey import ValkeyServer
from tests.support.waiting import until, wait_until

IGNORE_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
SLEEP = "import time; time.sleep(60)"


class Recorder(Console):
    """A console that is not a terminal, and records its output."""

    def __init__(self, plain_interval: float = 10) -> None:
        self.written = io.StringIO()
        out = RichConsole(file=self.written, width=200, highlight=False, markup=False)
        super().__init__(out, plain_interval=plain_interval)

    @property
    def text(self) -> str:
        return self.written.getvalue()


@pytest.fixture
def console() -> Recorder:
    return Recorder()


@pytest.fixture
async def supervisor(console: Recorder) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(console, restart_seconds=0.1)
    yield supervisor
    supervisor.hurry()
    await supervisor.stop()


class Parts:
    """Makes parts of small Python programs; one is ready when it has printed READY."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, code: str = f"print('READY', flush=True); {SLEEP}", rank: int = 0) -> Part:
        process = Process(Program(name, (sys.executable, "-c", code)), self.folder / f"{name}.log")
        return Part(name, rank, process, lambda: "READY" in process.tail(), address=f"at {name}", timeout=10)


@pytest.fixture
def part(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


async def until_shown(console: Recorder, text: str) -> None:
    await until(lambda: text in console.text)


async def test_parts_stop_in_the_reverse_order_of_their_rank(
    console: Recorder, supervisor: Supervisor, part: Parts
) -> None:
    parts = [part("gateway", rank=2), part("database", rank=0), part("auth", rank=1)]
    await asyncio.gather(*(supervisor.start(one) for one in parts))
    await supervisor.stop()
    assert not any(one.process.running for one in parts)
    stopped = [line.split()[1] for line in console.text.splitlines() if "stopped" in line]
    assert stopped == ["gateway", "auth", "database"]


async def test_a_part_that_is_ready_is_told_with_its_address_and_seconds(
    console: Recorder, supervisor: Supervisor, part: Parts
) -> None:
    await supervisor.start(part("one"))
    [line] = console.text.splitlines()
    assert "one" in line
    assert "at one" in line
    assert line.endswith(" s")


async def test_a_part_that_dies_at_the_start_ends_it_with_the_tail_of_its_log(
    supervisor: Supervisor, part: Parts
) -> None:
    with pytest.raises(ProcessError, match=r"one ended \(exit code 1\)\n(.*\n)*  \| RuntimeError: no such thing"):
        await supervisor.start(part("one", "raise RuntimeError('no such thing')"))


async def test_a_part_that_never_gets_ready_ends_it(supervisor: Supervisor, part: Parts) -> None:
    slow = part("slow", f"print('still trying', flush=True); {SLEEP}")
    slow.timeout = 1
    with pytest.raises(ProcessError, match=r"slow was not ready in 1 s\n  \| still trying"):
        await supervisor.start(slow)


async def test_a_part_that_dies_while_another_starts_ends_it(supervisor: Supervisor, part: Parts) -> None:
    database = part("database")
    await supervisor.start(database)
    start = asyncio.create_task(supervisor.start(part("gateway", SLEEP)))
    database.process.kill()
    with pytest.raises(ProcessError, match=r"database ended \(killed by SIGKILL\)\n  \| READY"):
        await start


async def test_a_dependency_that_is_killed_is_reported_and_comes_back(
    console: Recorder, supervisor: Supervisor, tmp_path: Path
) -> None:
    valkey = ValkeyServer(tmp_path / "valkey", free_port())
    valkey.initialise()
    await supervisor.start(Part("Valkey", 0, valkey.process, valkey.ready, address=f"port {valkey.port}"))
    watch = asyncio.create_task(supervisor.watch())
    for _ in range(2):
        assert valkey.process.pid is not None
        os.kill(valkey.process.pid, signal.SIGKILL)
        await until_shown(console, "died (killed by SIGKILL), starts again in")
        await until_shown(console, "is back")
        assert valkey.ready()
        console.written.truncate(0)
    watch.cancel()


async def test_the_delay_doubles_for_a_part_that_keeps_dying(
    console: Recorder, supervisor: Supervisor, part: Parts, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    code = f"import pathlib; p = pathlib.Path({str(once)!r}); assert not p.exists(), 'again'; p.touch(); print('READY')"
    dying = part("dying", code)
    dying.ready = once.exists
    await supervisor.start(dying)
    assert dying.process.wait(10)
    dying.process.log.unlink()
    dying.ready = lambda: False
    watch = asyncio.create_task(supervisor.watch())
    for delay in ("0.1", "0.2", "0.4"):
        await until_shown(console, f"starts again in {delay} s")
    assert "AssertionError: again" in console.text
    watch.cancel()


async def test_a_part_that_does_not_stop_is_killed(console: Recorder, supervisor: Supervisor, part: Parts) -> None:
    stubborn = part("stubborn", f"{IGNORE_SIGTERM}; print('READY', flush=True); {SLEEP}")
    stubborn.stop_timeout = 0.2
    await supervisor.start(stubborn)
    await supervisor.stop()
    assert stubborn.process.exit_reason == "killed by SIGKILL"
    assert "killed" in console.text


async def test_in_a_hurry_nothing_is_waited_for(supervisor: Supervisor, part: Parts) -> None:
    stubborn = part("stubborn", f"{IGNORE_SIGTERM}; print('READY', flush=True); {SLEEP}")
    stubborn.stop_timeout = 60
    await supervisor.start(stubborn)
    stop = asyncio.create_task(supervisor.stop())
    await asyncio.sleep(0)
    supervisor.hurry()
    async with asyncio.timeout(5):
        await stop
    assert not stubborn.process.running


async def test_a_part_whose_start_is_interrupted_is_stopped_too(supervisor: Supervisor, part: Parts) -> None:
    never = part("never", SLEEP)
    start = asyncio.create_task(supervisor.start(never))
    await until(lambda: never.process.running)
    start.cancel()
    await asyncio.wait([start])
    await supervisor.stop()
    assert not never.process.running


async def test_a_program_runs_to_its_end_and_shows_its_progress(
    console: Recorder, supervisor: Supervisor, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    seen: list[str] = []
    with console.step("task", "running") as step:
        program = Program("task", (sys.executable, "-c", "print('done')"))
        await supervisor.run(program, log, step, lambda: seen.append("asked") or "half")
    assert log.read_text() == "done\n"
    assert seen


async def test_a_program_that_fails_is_told_with_the_tail_of_its_log(
    console: Recorder, supervisor: Supervisor, tmp_path: Path
) -> None:
    program = Program("task", (sys.executable, "-c", "raise SystemExit('no disk space')"))
    with (
        console.step("task", "running") as step,
        pytest.raises(ProcessError, match=r"task failed \(exit code 1\)\n  \| no disk space"),
    ):
        await supervisor.run(program, tmp_path / "log", step)


async def test_a_program_that_is_interrupted_is_killed(
    console: Recorder, supervisor: Supervisor, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    code = f"import os, pathlib; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); {SLEEP}"
    with console.step("task", "running") as step:
        run = asyncio.create_task(supervisor.run(Program("task", (sys.executable, "-c", code)), tmp_path / "log", step))
        await until(lambda: pid.exists() and pid.read_text() != "")
        run.cancel()
        await asyncio.wait([run])
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_long_step_shows_signs_of_life_in_plain_lines_only() -> None:
    console = Recorder(plain_interval=0)
    with console.step("LiteLLM", "installing") as step:
        step.update("fetching package 3 of 117")
        step.done("installed")
    assert "fetching package 3 of 117 (0 s)" in console.text
    assert "\x1b" not in console.text


def test_a_running_system_is_found_by_other_commands_until_it_ends(tmp_path: Path) -> None:
    system = RunningSystem(
        gateway_url="http://g",
        auth_url="http://a",
        fxa_url="http://f",
        database_url="postgresql://d",
        redis_url="redis://r",
        data=tmp_path,
        admin_key="k",
        environment={"HOST": "h"},
    )
    assert RunningSystem.load(tmp_path) is None
    system.save()
    assert RunningSystem.load(tmp_path) == system
    assert (tmp_path / "system.json").stat().st_mode & 0o077 == 0
    system.forget()
    assert RunningSystem.load(tmp_path) is None


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from services.cli.console import Console
from services.cli.supervisor import Part, Supervisor
from services.local.process import free_port
from services.local.valkey import ValkeyServer

async def main():
    valkey = ValkeyServer(Path(sys.argv[1]) / "valkey", free_port())
    valkey.initialise()
    await Supervisor(Console()).start(Part("Valkey", 0, valkey.process, valkey.ready, address=""))
    print("PID", valkey.process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_no_part_survives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = next(int(line.split()[1]) for line in parent.stdout if line.startswith("PID"))
        os.kill(parent.pid, signal.SIGKILL)
    status = Path(f"/proc/{pid}/stat")
    wait_until(lambda: not status.exists() or " Z " in status.read_text())
