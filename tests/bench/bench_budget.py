"""What an admission costs, what Valkey bears, and how fast the ledger drains.

Run alone with ``python -m tests.bench.bench_budget``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from services.gateway.budget.charging import bounds
from services.gateway.budget.models import Delivery, Timings
from services.gateway.budget.services import Budgets
from services.gateway.budget.wire import pack
from services.local.postgres import PostgresServer
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared import migrate
from shared.postgres import Database
from shared.redis import Client, connect
from tests.services.gateway.budget.support import ask, delivered, opened, principal, row, rows, total

CALLS, ROUNDS, USERS = 500, 5, 100
CONCURRENCY = 32
LEDGER_ROWS = 10_000
KIND = row(max_budget_nano=10**15, rpm=10**6, tpm=10**9)


async def run() -> list[tuple[str, str]]:
    """Rows of (name, figure)."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        os.chmod(name, 0o755)  # noqa: PTH101 - PostgreSQL runs as another user
        with (
            ValkeyServer(folder / "valkey", free_port()) as valkey,
            PostgresServer(folder / "postgres", free_port(), durable=False) as postgres,
        ):
            url = postgres.create_database("bench")
            await asyncio.to_thread(migrate.upgrade, url)
            client = connect(valkey.url)
            async with opened(valkey.url, url, rows(KIND), Timings()) as (budgets, _, _):
                found = [
                    await _latency(budgets, client),
                    await _python_cpu(budgets),
                    *await _valkey_cpu(budgets, client),
                ]
            found.append(await _drain(valkey.url, url))
            await client.aclose()
            return found


async def _latency(budgets: Budgets, client: Client) -> tuple[str, str]:
    """One at a time, interleaved, so that both see the same machine."""
    link = budgets._admission.executor
    await _once(budgets, 1)
    admissions, gets, bare = [], [], []
    for _ in range(CALLS):
        admissions.append(await _timed(lambda: _once(budgets, 1)))
        gets.append(await _timed(lambda: client.get("bench")))
        bare.append(await _timed(lambda: link.links()[0].send(pack("GET", "bench"))))
    admission, get, raw = (statistics.median(times) * 1e6 for times in (admissions, gets, bare))
    return (
        "budget: admission, p50",
        f"{admission:.0f} us, one round trip; {admission / get:.2f} x a GET through redis-py ({get:.0f} us), "
        f"{admission / raw:.2f} x a GET on the same connection ({raw:.0f} us)",
    )


async def _once(budgets: Budgets, user: int) -> None:
    budgets.settle(await budgets.admit(ask(principal(KIND, user=user))), Delivery("abort", sent=False))


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


async def _python_cpu(budgets: Budgets) -> tuple[str, str]:
    """Admission, settlement and ledger of requests with usage, everything in this process counted."""
    asks = [ask(principal(KIND, user=user)) for user in range(USERS)]

    async def worker(number: int) -> None:
        for turn in range(CALLS // CONCURRENCY * 4):
            wanted = dataclasses.replace(
                asks[(number * 7 + turn) % USERS], id=f"{number}-{turn}-{time.perf_counter_ns()}"
            )
            budgets.settle(await budgets.admit(wanted), delivered())

    costs = []
    for _ in range(ROUNDS):
        before = time.process_time()
        await asyncio.gather(*(worker(number) for number in range(CONCURRENCY)))
        costs.append((time.process_time() - before) / (CALLS // CONCURRENCY * 4 * CONCURRENCY))
    return f"budget: Python CPU of a request, {CONCURRENCY} at a time", f"{min(costs) * 1e6:.0f} us"


async def _valkey_cpu(budgets: Budgets, client: Client) -> list[tuple[str, str]]:
    """Calls per second that one core of Valkey bears, by its own CPU clock."""
    admission = budgets._admission
    asks = [
        dataclasses.replace(ask(principal(KIND, user=turn % USERS)), id=f"v{turn}-{time.perf_counter_ns()}")
        for turn in range(4 * CALLS)
    ]
    limits = bounds(asks[0], KIND.max_budget_nano)
    before = await _server_cpu(client)
    reservations = await asyncio.gather(*(admission.admit(wanted, "ai", KIND, limits) for wanted in asks))
    admitted = (await _server_cpu(client) - before) / len(asks)
    before = await _server_cpu(client)
    for reservation in reservations:
        assert not isinstance(reservation, Exception)
        budgets.settle(reservation, delivered())  # type: ignore[arg-type]
    await budgets._settlements.drained(10)
    settled = (await _server_cpu(client) - before) / len(asks)
    return [
        ("budget: admit scripts per second and core of Valkey", f"{1 / admitted:,.0f} ({admitted * 1e6:.1f} us)"),
        ("budget: settle scripts per second and core of Valkey", f"{1 / settled:,.0f} ({settled * 1e6:.1f} us)"),
    ]


async def _server_cpu(client: Client) -> float:
    info = await client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def _drain(redis_url: str, postgres_url: str) -> tuple[str, str]:
    """Rows that piled up while nothing was written."""
    silent = Timings(flush=3600, sweep=3600)
    async with opened(redis_url, postgres_url, rows(KIND), silent) as (budgets, _, _):
        for first in range(0, LEDGER_ROWS, 500):
            wanted = [ask(principal(KIND, user=(first + at) % USERS)) for at in range(500)]
            for reservation in await asyncio.gather(*map(budgets.admit, wanted)):
                budgets.settle(reservation, delivered())
        await budgets._settlements.drained(10)
        began = time.perf_counter()
        await budgets._ledger.flush()
        seconds = time.perf_counter() - began
    async with Database.connect(postgres_url) as database:
        assert (await total(database))[0] >= LEDGER_ROWS
    return "budget: ledger rows drained per second by one process", f"{LEDGER_ROWS / seconds:,.0f}"


if __name__ == "__main__":
    for name, figure in uvloop.run(run()):
        print(f"{name}: {figure}")
