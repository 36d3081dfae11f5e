"""The relay with everything on, beside a bare relay of aiohttp, before the same upstream; the two take turns.

Relay under test on one core, everything else (upstream, clients, Valkey, PostgreSQL) on the other.

    python -m tests.bench.bench_relay [paced] [unpaced] [answers] [memory] [many] [flat]
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from services.auth.tokens.issuer import Issuer
from services.auth.tokens.keys import KeyRing, ensure_key
from services.local.postgres import PostgresServer
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared import migrate
from tests.bench.relay import clients

ISSUER = "http://127.0.0.1:1"
ROUNDS = 3
GATEWAY = (str(Path(sys.executable).with_name("mlpa")), "gateway")
SERVICE_TYPES = """
[[service_type]]
name = "ai"
max_budget = "100000"
duration = "1d"
rpm = 0
tpm = 0
models = ["*"]
credentials = ["fxa"]
fxa_client_ids = ["*"]
"""
Row = tuple[str, str]


@dataclass(slots=True)
class Relay:
    """A relay that is measured."""

    name: str
    port: int
    token: str
    process: subprocess.Popen[bytes]
    cpu: list[float] = field(default_factory=list)

    @property
    def ps(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def cpu_seconds(self) -> float:
        times = self.ps.cpu_times()
        return times.user + times.system

    def ask(self, model: str, *, stream: bool = True) -> bytes:
        return clients.request(model, self.token, stream=stream)


@asynccontextmanager
async def rig() -> AsyncIterator[tuple[Relay, Relay]]:
    """The bare relay and the gateway, running."""
    cores = sorted(os.sched_getaffinity(0))
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # noqa: ASYNC240
        os.sched_setaffinity(0, {cores[-1]})
        stack.callback(os.sched_setaffinity, 0, cores)
        postgres = stack.enter_context(PostgresServer(folder / "postgres", free_port(), durable=False))
        valkey = stack.enter_context(ValkeyServer(folder / "valkey", free_port()))
        database = postgres.create_database("bench")
        migrate.upgrade(database)
        ensure_key(folder / "keys")
        keys = KeyRing(folder / "keys")
        (folder / "jwks").write_bytes(msgspec.json.encode(keys.jwks()))
        (folder / "types.toml").write_text(SERVICE_TYPES)
        token = Issuer(keys, issuer=ISSUER, ttl=3600).issue(
            user_id="0123456789abcdef0123456789abcdef:ai", client_id="bench", scope="ai", amr="fxa"
        )
        upstream, bare, gateway = free_port(), free_port(), free_port()
        url = f"http://127.0.0.1:{upstream}"
        environment = {
            **os.environ,
            "PORT": str(gateway),
            "DATABASE_URL": database,
            "REDIS_URL": valkey.url,
            "SERVICE_TYPES": str(folder / "types.toml"),
            "MLPA_ISSUER": ISSUER,
            "MLPA_JWKS_URL": f"{url}/jwks",
            "MLPA_VIRTUAL_KEY": "sk-bench",
            "LITELLM_API_BASE": url,
            "LOG_JSON": "true",
            "MAX_OPEN_REQUESTS": "4000",
        }
        log = stack.enter_context((folder / "log").open("wb"))

        def start(core: int, *command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=log, stderr=log, env=environment)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        python = sys.executable
        start(cores[-1], python, "-m", "tests.bench.relay.upstream", str(upstream), str(folder / "jwks"))
        await _answering(upstream)
        relays = (
            Relay("bare", bare, token, start(cores[0], python, "-m", "tests.bench.relay.bare", str(bare), url)),
            Relay("gateway", gateway, token, start(cores[0], *GATEWAY)),
        )
        for relay in relays:
            await _answering(relay.port)
            load = await clients.answers(relay.port, relay.ask("plain", stream=False), 4, 1.0)
            if load.errors:
                raise RuntimeError(f"{relay.name} does not work: {(folder / 'log').read_text()[-3000:]}")
        yield relays


async def _answering(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def _by_turns(
    relays: tuple[Relay, Relay], work: Callable[[Relay], Awaitable[clients.Load]]
) -> tuple[list[float], dict[str, list[float]], int]:
    """Rounds of both. Returns the ratio of CPU per event by round, times to the first event, errors."""
    first: dict[str, list[float]] = {relay.name: [] for relay in relays}
    per_event: dict[str, list[float]] = {relay.name: [] for relay in relays}
    errors = 0
    for turn in range(ROUNDS):
        for relay in relays if turn % 2 else relays[::-1]:
            before = relay.cpu_seconds()
            load = await work(relay)
            per_event[relay.name].append((relay.cpu_seconds() - before) / max(1, load.events) * 1e6)
            first[relay.name] += load.first
            errors += load.errors
    ratios = [mine / bare for mine, bare in zip(per_event["gateway"], per_event["bare"], strict=True)]
    for relay in relays:
        relay.cpu = per_event[relay.name]
    return ratios, first, errors


def _cpu_row(name: str, relays: tuple[Relay, Relay], ratios: list[float], errors: int) -> Row:
    bare, gateway = (statistics.median(relay.cpu) for relay in relays)
    text = f"gateway {gateway:.1f} us, bare {bare:.1f} us: {statistics.median(ratios):.2f}x, {errors} errors"
    return (f"CPU per event, {name}", text)


async def _while_they_run(relay: Relay, count: int, begin: float, end: float) -> float:
    """CPU per event, in microseconds, from ``begin`` to ``end`` seconds after the first of the streams began."""
    load = clients.Load()
    ask = relay.ask("paced-20-400")
    running = asyncio.gather(*(clients.stream(relay.port, ask, load) for _ in range(count)))
    await asyncio.sleep(begin)
    before, events = relay.cpu_seconds(), load.events
    await asyncio.sleep(end - begin)
    used = (relay.cpu_seconds() - before) / (load.events - events) * 1e6
    await running
    if load.errors:
        raise RuntimeError(f"{relay.name}: {load.errors} streams failed")
    return used


async def paced(relays: tuple[Relay, Relay]) -> list[Row]:
    cpu: dict[str, list[float]] = {"bare": [], "gateway": []}
    for turn in range(ROUNDS):
        for relay in relays if turn % 2 else relays[::-1]:
            cpu[relay.name].append(await _while_they_run(relay, 200, 1.5, 7.5))
    for relay in relays:
        relay.cpu = cpu[relay.name]
    ratios = [mine / bare for mine, bare in zip(cpu["gateway"], cpu["bare"], strict=True)]
    rows = [_cpu_row("200 streams paced at 20 ms, while they run", relays, ratios, 0)]
    ratios, _, errors = await _by_turns(
        relays, lambda relay: clients.streams(relay.port, relay.ask("paced-20-150"), 200, spread=0.5)
    )
    rows.append(_cpu_row("the same, 3 s each with all of the request", relays, ratios, errors))
    _, first, _ = await _by_turns(
        relays, lambda relay: clients.streams(relay.port, relay.ask("paced-20-100"), 100, spread=1.5)
    )
    added = {}
    for name, at in (("p50", 49), ("p99", 98)):
        mine, bare = (statistics.quantiles(first[key], n=100)[at] for key in ("gateway", "bare"))
        added[name] = (mine - bare) * 1000
    rows.append(
        ("added time to the first event, 100 paced streams", ", ".join(f"{k} {v:+.2f} ms" for k, v in added.items()))
    )
    return rows


async def unpaced(relays: tuple[Relay, Relay]) -> list[Row]:
    ratios, _, errors = await _by_turns(relays, lambda relay: clients.streams(relay.port, relay.ask("burst-3000"), 32))
    return [_cpu_row("32 streams unpaced", relays, ratios, errors)]


async def answers(relays: tuple[Relay, Relay]) -> list[Row]:
    rates: dict[str, list[float]] = {relay.name: [] for relay in relays}
    cpu: dict[str, list[float]] = {relay.name: [] for relay in relays}
    errors = 0
    for _ in range(ROUNDS):
        for relay in relays:
            before, started = relay.cpu_seconds(), time.perf_counter()
            load = await clients.answers(relay.port, relay.ask("plain", stream=False), 32, 2.0)
            rates[relay.name].append(load.requests / (time.perf_counter() - started))
            cpu[relay.name].append((relay.cpu_seconds() - before) / load.requests * 1e6)
            errors += load.errors
    mine, bare = statistics.median(rates["gateway"]), statistics.median(rates["bare"])
    mine_cpu, bare_cpu = statistics.median(cpu["gateway"]), statistics.median(cpu["bare"])
    return [
        (
            "requests per second, 32 at once",
            f"gateway {mine:.0f}, bare {bare:.0f}: {mine / bare:.2f}x "
            f"(CPU {mine_cpu:.0f} us, bare {bare_cpu:.0f} us: {bare_cpu / mine_cpu:.2f}x), {errors} errors",
        )
    ]


async def memory(relays: tuple[Relay, Relay], count: int = 1000) -> list[Row]:
    per_stream = {}
    for relay in relays:
        await clients.streams(relay.port, relay.ask("burst-10"), 50)
        before = relay.ps.memory_info().rss
        running = asyncio.create_task(clients.streams(relay.port, relay.ask("paced-500-20"), count, spread=3))
        await asyncio.sleep(7)
        per_stream[relay.name] = (relay.ps.memory_info().rss - before) / count / 1024
        await running
    mine, bare = per_stream["gateway"], per_stream["bare"]
    return [("memory per open stream", f"gateway {mine:.1f} KiB, bare {bare:.1f} KiB: {mine - bare:+.1f} KiB")]


async def many(relays: tuple[Relay, Relay]) -> list[Row]:
    gateway = relays[1]
    before = gateway.cpu_seconds()
    load = await clients.streams(gateway.port, gateway.ask("paced-500-8"), 2000, spread=2)
    used = gateway.cpu_seconds() - before
    return [("2,000 streams paced at 500 ms", f"{load.errors} errors, {load.events} events, {used:.1f} s of CPU")]


async def flat(relays: tuple[Relay, Relay], thousands: int = 100) -> list[Row]:
    """RSS while so many thousand short streams go by."""
    gateway, seen = relays[1], []
    for done in range(thousands):
        for _ in range(10):
            await clients.streams(gateway.port, gateway.ask("burst-10"), 100)
        if done % 10 == 9:
            seen.append(f"{gateway.ps.memory_info().rss / 2**20:.0f}")
    return [(f"RSS in MiB over {thousands},000 streams", " ".join(seen))]


PARTS = {"paced": paced, "unpaced": unpaced, "answers": answers, "memory": memory, "many": many}


async def run(parts: list[str] | None = None) -> list[Row]:
    """Rows of (name, figure)."""
    rows: list[Row] = []
    async with rig() as relays:
        for name in parts or PARTS:
            part = flat if name == "flat" else PARTS[name]
            rows += await part(relays)
    return rows


if __name__ == "__main__":
    for name, figure in asyncio.run(run(sys.argv[1:])):
        print(f"{name:50} {figure}")
