"""The relay with everything on, beside a bare relay of aiohttp, before the same upstream; the two take turns.

Relay under test on one core, everything else (upstream, clients, Valkey, PostgreSQL) on the other.

    python -m tests.bench.bench_relay [PART...]
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple, TypeVar

import psutil

from services.local.process import free_port
from tests.bench.figures import ROUNDS, Row, beside, more, spread, turns
from tests.bench.relay import clients
from tests.bench.stores import gateway_settings, stores
from tests.support.service_types import toml

LONGEST, PATIENCE = 1800.0, 240.0  # seconds of all parts, of one
OPEN = 1000  # streams, when memory is measured
UPLOADS, IMAGE = (100, 400), 2_800_000  # streams whose request is an image, and its bytes
GATEWAY = (str(Path(sys.executable).with_name("mlpa")), "gateway")
SERVICE_TYPES = toml(max_budget="100000", rpm=0, tpm=0)
_T = TypeVar("_T")


@dataclass(slots=True)
class Relay:
    """A relay that is measured."""

    name: str
    port: int
    token: str
    log: Path
    launch: Callable[[], subprocess.Popen[bytes]]
    fields: str = ""
    process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    async def start(self) -> None:
        """A fresh process, instead of one that runs, that has answered."""
        self.stop()
        self.process = self.launch()
        await _answering(self.port)
        load = await clients.answers(self.port, self.ask("plain", stream=False), 4, 1.0)
        if load.errors:
            raise RuntimeError(f"{self.name} does not work\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def ps(self) -> psutil.Process:
        assert self.process is not None
        return psutil.Process(self.process.pid)

    def cpu_seconds(self) -> float:
        """CPU seconds of its threads by the scheduler: the clock of user and system time ticks every 10 ms."""
        assert self.process is not None
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def ask(self, model: str, *, stream: bool = True, image: int = 0) -> bytes:
        return clients.request(model, self.token, stream=stream, image=image, fields=self.fields)


#: The gateway and the bare relay, and others where the rig has them.
Relays = tuple[Relay, ...]


class Other(NamedTuple):
    """Another program in the gateway's place."""

    name: str
    port: int
    token: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] | None = None
    fields: str = ""


#: CPU seconds, and what the clients saw.
Measured = tuple[float, clients.Load]


@asynccontextmanager
async def rig(*others: Callable[[Path, str], Other | None]) -> AsyncIterator[Relays]:
    """The gateway and the bare relay, running.

    :param others: make more, of a folder and the upstream's URL; None if one can't be had.
    """
    cores = sorted(os.sched_getaffinity(0))
    async with AsyncExitStack() as stack:
        os.sched_setaffinity(0, {cores[-1]})
        stack.callback(os.sched_setaffinity, 0, cores)
        folder, valkey, _, database = stack.enter_context(stores())
        upstream, bare, gateway = free_port(), free_port(), free_port()
        url = f"http://127.0.0.1:{upstream}"
        issuer, environment = gateway_settings(
            folder, SERVICE_TYPES, database=database, redis=valkey.url, upstream=upstream
        )
        environment["PORT"] = str(gateway)
        user = "0123456789abcdef0123456789abcdef:ai"
        token = issuer.issue(user_id=user, client_id="bench", scope="ai", amr="fxa").text
        log = folder / "log"
        output = stack.enter_context(log.open("wb"))

        def start(core: int, *command: str, env: Mapping[str, str] = environment) -> subprocess.Popen[bytes]:
            argv = ["taskset", "-c", str(core), *command]
            return subprocess.Popen(argv, stdout=output, stderr=output, env=env)

        python = sys.executable
        double = start(cores[-1], python, "-m", "tests.bench.relay.upstream", str(upstream), str(folder / "jwks"))
        stack.callback(double.wait)
        stack.callback(double.kill)
        await _answering(upstream)
        plain = (python, "-m", "tests.bench.relay.bare", str(bare), url)
        found = [other for make in others if (other := make(folder, url)) is not None]
        relays = (
            Relay("gateway", gateway, token, log, partial(start, cores[0], *GATEWAY)),
            Relay("bare", bare, token, log, partial(start, cores[0], *plain)),
            *(
                Relay(name, port, key, log, partial(start, cores[0], *argv, env=env or environment), fields)
                for name, port, key, argv, env, fields in found
            ),
        )
        for relay in relays:
            stack.callback(relay.stop)
            await relay.start()
        yield relays


async def _answering(port: int) -> None:
    async with asyncio.timeout(180):  # a busy machine
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def _both(
    relays: Relays, work: Callable[[Relay], Awaitable[_T]], rounds: int = ROUNDS
) -> tuple[list[_T], list[_T]]:
    """The results of the gateway and of the bare relay, by round."""
    mine, bare = await turns(*(partial(work, relay) for relay in relays), rounds=rounds)
    return mine, bare


async def _streams(relay: Relay, *, model: str, count: int, spread: float = 0) -> tuple[float, clients.Load]:
    """CPU seconds per event, and the streams as the clients saw them."""
    before = relay.cpu_seconds()
    load = await clients.streams(relay.port, relay.ask(model), count, spread=spread)
    return (relay.cpu_seconds() - before) / max(1, load.events), load


async def _cpu_row(
    relays: Relays, name: str, goal: str, work: Callable[[Relay], Awaitable[Measured]], rounds: int = ROUNDS
) -> Row:
    mine, bare = await _both(relays, work, rounds)
    figure = beside([cpu for cpu, _ in mine], [cpu for cpu, _ in bare], "us", 1e6, goal=goal)
    return f"CPU per event, {name}", f"{figure}; {_errors(*mine, *bare)}"


def _errors(*measured: Measured) -> str:
    return f"{sum(load.errors for _, load in measured)} errors"


async def bursts(relay: Relay, times: int = 10) -> Measured:
    """CPU seconds per event of 32 unpaced streams at once, so many times."""
    before, whole = relay.cpu_seconds(), clients.Load()
    for _ in range(times):
        load = await clients.streams(relay.port, relay.ask("burst-100"), 32)
        whole.events, whole.errors = whole.events + load.events, whole.errors + load.errors
    return (relay.cpu_seconds() - before) / max(1, whole.events), whole


async def unpaced(relays: Relays) -> list[Row]:
    return [await _cpu_row(relays, "streams of 100 events unpaced, 32 at once", "1.6x", bursts)]


async def paced(relays: Relays) -> list[Row]:
    whole = partial(_streams, model="paced-20-50", count=200, spread=0.5)
    return [await _cpu_row(relays, "streams of 50 events in 1 s, 200 at once", "1.12x", whole)]


async def long(relays: Relays) -> list[Row]:
    work = partial(_streams, model="paced-50-300", count=200, spread=0.5)
    return [await _cpu_row(relays, "streams of 300 events in 15 s, 200 at once", "1.10x", work, rounds=3)]


@asynccontextmanager
async def _running(relay: Relay, model: str) -> AsyncIterator[clients.Load]:
    """200 streams, 1.5 seconds after the first of them began."""
    ask, load = relay.ask(model), clients.Load()
    running = asyncio.gather(*(clients.stream(relay.port, ask, load) for _ in range(200)))
    await asyncio.sleep(1.5)
    yield load
    await running


async def first(relays: Relays) -> list[Row]:
    rows = []
    for count, goals in ((100, ("+0.7 ms", "+2 ms")), (200, ("+1.2 ms", "+6 ms"))):
        work = partial(_streams, model="paced-20-75", count=3 * count, spread=4.5)
        mine, bare = await _both(relays, work, rounds=3)
        for name, at, goal in (("p50", 49, goals[0]), ("p99", 98, goals[1])):
            ours, theirs = ([quantiles(load.first, n=100)[at] for _, load in of] for of in (mine, bare))
            name = f"added time to the first event, {count} paced streams open, {name}"
            rows.append((name, more(ours, theirs, "ms", 1e3, goal=goal)))
    return rows


async def stalls(relays: Relays) -> list[Row]:
    """While 200 streams run; the machine's own stalls are in both figures."""
    seen: dict[str, int] = {}

    async def work(relay: Relay) -> Measured:
        async with _running(relay, "paced-20-700") as load:
            before, events, stalled = relay.cpu_seconds(), load.events, load.stalls
            await asyncio.sleep(12)
            used = (relay.cpu_seconds() - before) / (load.events - events)
            seen[relay.name] = seen.get(relay.name, 0) + load.stalls - stalled
        return used, load

    cpu = await _cpu_row(relays, "200 streams paced at 20 ms, while they run", "1.10x", work)
    figure = f"{seen['gateway']} beside {seen['bare']}"
    return [cpu, (f"stalls over 20 ms in a minute, 200 paced streams, {ROUNDS} times 12 s", figure)]


async def answers(relays: Relays) -> list[Row]:
    (rates, cpu, errors), (bare_rates, bare_cpu, bare_errors) = (
        zip(*measured, strict=True) for measured in await _both(relays, whole_answers)
    )
    rate = beside(rates, bare_rates, "a second", goal="at least 0.45x")
    return [
        ("requests, 32 at once", f"{rate}; {sum(errors + bare_errors)} errors"),
        ("CPU of a request, 32 at once", beside(cpu, bare_cpu, "us", 1e6)),
    ]


async def whole_answers(relay: Relay) -> tuple[float, float, int]:
    """Requests per second, CPU seconds per request, errors."""
    before, started = relay.cpu_seconds(), time.perf_counter()
    load = await clients.answers(relay.port, relay.ask("plain", stream=False), 32, 2.0)
    seconds, cpu = time.perf_counter() - started, relay.cpu_seconds() - before
    return load.requests / seconds, cpu / max(1, load.requests), load.errors


async def memory(relays: Relays) -> list[Row]:
    mine, bare = await _both(relays, _per_stream, rounds=3)
    return [(f"added memory per open stream, {OPEN:,} open", more(mine, bare, "KiB", goal="at most +8 KiB"))]


async def images(relays: Relays) -> list[Row]:
    """The memory that uploads leave taken. Bodies are released once they are sent, so it does not grow with them."""
    grown = [await _per_stream(relays[0], count=count, image=IMAGE) * count / 1024 for count in UPLOADS]
    name = f"RSS taken by {' and '.join(map(str, UPLOADS))} open streams, each asked with an image of 2.8 MB"
    return [(name, " and ".join(f"{one:.0f} MiB" for one in grown))]


async def _per_stream(relay: Relay, count: int = OPEN, image: int = 0) -> float:
    """KiB. The process is a fresh one, since memory that was taken once isn't given back."""
    await relay.start()
    await clients.streams(relay.port, relay.ask("burst-10"), 50)
    before: int = relay.ps.memory_info().rss
    ask = relay.ask("paced-500-10", image=image)
    running = asyncio.create_task(clients.streams(relay.port, ask, count, spread=2))
    await asyncio.sleep(4)
    taken: int = relay.ps.memory_info().rss - before
    if (await running).errors:
        raise RuntimeError(f"{relay.name}: streams failed")
    return taken / count / 1024


async def many(relays: Relays) -> list[Row]:
    (measured,) = await turns(partial(_streams, relays[0], model="paced-500-8", count=2000, spread=2), rounds=2)
    cpu = spread([each * load.events for each, load in measured], "s of CPU")
    return [(f"2,000 streams paced at 500 ms, {len(measured)} times", f"{_errors(*measured)} in all; {cpu}")]


async def flat(relays: Relays, thousands: int = 100) -> list[Row]:
    """RSS while so many thousand short streams go by."""
    gateway, seen = relays[0], []
    for done in range(thousands):
        for _ in range(10):
            await clients.streams(gateway.port, gateway.ask("burst-10"), 100)
        if done % 10 == 9:
            seen.append(f"{gateway.ps.memory_info().rss / 2**20:.0f}")
    return [(f"RSS in MiB over {thousands},000 streams", " ".join(seen))]


PARTS = {
    "answers": answers,
    "unpaced": unpaced,
    "paced": paced,
    "long": long,
    "first": first,
    "stalls": stalls,
    "memory": memory,
    "images": images,
    "many": many,
}


async def run(parts: list[str] | None = None) -> list[Row]:
    """Rows of (name, figure)."""
    rows: list[Row] = []
    async with rig() as relays:
        for name in parts or PARTS:
            part = flat if name == "flat" else PARTS[name]
            try:
                async with asyncio.timeout(PATIENCE):
                    rows += await part(relays)
            except (OSError, EOFError, TimeoutError, RuntimeError) as error:
                rows.append((name, f"not measured: {error!r}"))
    return rows


if __name__ == "__main__":
    for name, figure in asyncio.run(run(sys.argv[1:])):
        print(f"{name:50} {figure}")
