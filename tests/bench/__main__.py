"""All measurements on one page: `make bench`, or `python -m tests.bench [NAME...] [--out FILE]`.

Every module `bench_*.py` of this folder has an async `run()` that returns rows of (name, figure). Figures that matter
are ratios to something bare, measured in turns in the same run: absolute times are the machine's. A module that fails,
or takes too long, shows as such, and fails nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import uvloop

from services.local import litellm, postgres, valkey
from services.local.process import Account, ProcessError
from shared.telemetry import logs
from tests.bench.figures import ROUNDS, Row

CHECKOUT = Path(__file__).parents[2]
LONGEST = 480.0  # seconds of a module that has no LONGEST of its own
ON_REQUEST = {"bench_console", "bench_scale"}  # they take minutes, and the latter gigabytes of disk
PACKAGES = ("aiohttp", "uvloop", "redis", "hiredis", "aiopg", "cryptography", "python-jose", "msgspec")
LEGEND = f"""\
Figures are the median (least to most) of {ROUNDS} rounds, or fewer of what takes long. A ratio is of each round's own
pair, which take turns: `1.10x (1.08 to 1.13); this beside that`. LiteLLM and FxA are doubles that answer at once."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measurements, as one page.")
    parser.add_argument("names", nargs="*", help="Only these modules, without bench_ (system, relay...).")
    parser.add_argument("--out", type=Path, help="Write the page to a file too.")
    options = parser.parse_args(arguments)
    page: list[str] = []

    def say(line: str = "") -> None:
        page.append(line)
        print(line, flush=True)

    for line in (*_head(), "", LEGEND):
        say(line)
    started = time.monotonic()
    for name in _modules(options.names):
        say()
        began = time.monotonic()
        for line in _table(name):
            say(line)
        say(f"  (took {time.monotonic() - began:.0f} s, load {_load()})")
    say(f"\nAll of it took {time.monotonic() - started:.0f} s.")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(page) + "\n")


def _modules(names: Sequence[str]) -> list[str]:
    found = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    return [name for name in found if (name.removeprefix("bench_") in names if names else name not in ON_REQUEST)]


def _table(module: str) -> list[str]:
    title = module.removeprefix("bench_")
    try:
        rows = _run(module)
    except (Exception, SystemExit) as error:  # whatever a measurement dies of, the others are still wanted
        traceback.print_exc(file=sys.stderr)
        reason = str(error).partition("\n")[0]
        return [title, f"  not measured: {type(error).__name__}{reason and f': {reason}'}"]
    width = max((len(name) for name, _ in rows), default=0)
    return [title, *(f"  {name:{width}}  {figure}" for name, figure in rows)]


def _run(module: str) -> list[Row]:
    async def limited() -> list[Row]:
        imported = importlib.import_module(f"tests.bench.{module}")
        async with asyncio.timeout(getattr(imported, "LONGEST", LONGEST)):
            rows: list[Row] = await imported.run()
            return rows

    with contextlib.redirect_stdout(sys.stderr):  # what it logs is not part of the page
        logs.configure(form="text", level="WARNING")
        return uvloop.run(limited())  # as the services run


def _head() -> list[str]:
    return [
        f"MLPA {_version('mlpa')}{_revision()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{_processor()}, {os.cpu_count()} CPUs, {_memory()} of memory, load {_load()}",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        ", ".join(_servers()),
    ]


def _load() -> str:
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


def _revision() -> str:
    """The commit, marked if there are changes since."""
    if not (CHECKOUT / ".git").exists():
        return ""
    git = ("git", "--no-optional-locks", "-C", str(CHECKOUT), "describe", "--always", "--exclude=*", "--dirty")
    return f", revision {_output(*git)}"


def _servers() -> list[str]:
    try:
        programs = (valkey.binary(), postgres.binaries(Account.current()) / "postgres")
    except ProcessError as error:
        return [str(error)]
    return [
        *(_output(str(program), "--version").partition(" sha=")[0] for program in programs),
        *(f"LiteLLM {release} (locked)" for release in re.findall(r"(?m)^litellm==(\S+)", litellm.LOCK.read_text())),
    ]


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"unknown to {Path(command[0]).name}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    main(sys.argv[1:])
