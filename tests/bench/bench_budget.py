"""The cost of an admission, the load that Valkey bears, and the speed at which the ledger drains."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import msgspec

from services.gateway.budget.charging import bounds, charge
from services.gateway.budget.models import Delivery, Reservation, Timings
from services.gateway.budget.scripts import Expected
from services.gateway.budget.services import Budgets
from shared.stores.postgres import Database
from shared.stores.redis import Client, connect
from shared.stores.redis_wire import pack
from tests.bench.figures import ROUNDS, Row, beside, spread, turns
from tests.bench.stores import stores
from tests.services.gateway.budget.support import ask, delivered, opened, principal, row, rows, total

CALLS, USERS, CONCURRENCY = 500, 100, 32
LEDGER_ROWS = 5000
KIND = row(max_budget_nano=10**15, rpm=10**6, tpm=10**9)


async def run() -> list[Row]:
    """Rows of (name, figure)."""
    with stores() as (_, valkey, _, url):
        async with connect(valkey.url) as client, opened(valkey.url, url, rows(KIND), Timings()) as (budgets, _, _):
            found = [
                *await _latency(budgets, client),
                await _python_cpu(budgets),
                *await _valkey_cpu(budgets, client),
            ]
        return [*found, await _drain(valkey.url, url)]


async def _latency(budgets: Budgets, client: Client) -> list[Row]:
    """One call at a time, in turns within a round too."""
    link = budgets._scripts.executor
    works = (
        lambda: _timed(lambda: _once(budgets, 1)),
        lambda: _timed(lambda: client.get("bench")),
        lambda: _timed(lambda: link.links()[0].send(pack("GET", "bench"))),
    )
    await turns(*works)
    rounds = [map(statistics.median, await turns(*works, rounds=CALLS // ROUNDS)) for _ in range(ROUNDS)]
    admission, get, raw = zip(*rounds, strict=True)
    return [
        ("admission (one round trip), p50, beside a GET of auth's client", beside(admission, get, "us", 1e6)),
        ("admission, p50, beside a GET on the same connection", beside(admission, raw, "us", 1e6)),
    ]


async def _once(budgets: Budgets, user: int) -> None:
    budgets.settle(await budgets.admit(ask(principal(KIND, user=user))), Delivery("abort", sent=False))


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


async def _python_cpu(budgets: Budgets) -> Row:
    """Admission, settlement and ledger of requests with usage, everything in this process counted."""
    asks = [ask(principal(KIND, user=user)) for user in range(USERS)]

    async def worker(number: int) -> None:
        for turn in range(CALLS // CONCURRENCY * 4):
            wanted = msgspec.structs.replace(
                asks[(number * 7 + turn) % USERS], id=f"{number}-{turn}-{time.perf_counter_ns()}"
            )
            budgets.settle(await budgets.admit(wanted), delivered())

    costs = []
    for _ in range(ROUNDS):
        before = time.process_time()
        await asyncio.gather(*(worker(number) for number in range(CONCURRENCY)))
        costs.append((time.process_time() - before) / (CALLS // CONCURRENCY * 4 * CONCURRENCY))
    return f"Python CPU of a request, {CONCURRENCY} at a time", spread(costs, "us", 1e6)


async def _valkey_cpu(budgets: Budgets, client: Client) -> list[Row]:
    """Calls per second that one core of Valkey bears, by its own CPU clock."""
    rounds = [await _script_cpu(budgets, client) for _ in range(ROUNDS)]
    return [
        (
            f"Valkey, {name} scripts",
            f"{spread(each, 'us CPU', 1e6)}; {spread([1 / one for one in each], 'a second and core')}",
        )
        for name, each in zip(("admit", "settle"), zip(*rounds, strict=True), strict=True)
    ]


async def _script_cpu(budgets: Budgets, client: Client) -> tuple[float, float]:
    """CPU seconds of an admission and of a settlement."""
    scripts = budgets._scripts
    asks = [
        msgspec.structs.replace(ask(principal(KIND, user=turn % USERS)), id=f"v{turn}-{time.perf_counter_ns()}")
        for turn in range(4 * CALLS)
    ]
    limits = bounds(asks[0], KIND.max_budget_nano)
    before = await _server_cpu(client)
    reservations = []
    for first in range(0, len(asks), USERS):
        admissions = (
            scripts.admit(wanted, Expected(KIND.name, KIND, 0, enforced=True), limits)
            for wanted in asks[first : first + USERS]
        )
        reservations += await asyncio.gather(*admissions)
    admitted = (await _server_cpu(client) - before) / len(asks)
    before = await _server_cpu(client)
    for reservation in reservations:
        assert isinstance(reservation, Reservation)
        cost = charge(reservation.ask, reservation.grant, delivered())
        budgets._queue.settle(reservation.row(cost, "success"))
    await budgets._queue.all_settled(10)
    settled = (await _server_cpu(client) - before) / len(asks)
    return admitted, settled


async def _server_cpu(client: Client) -> float:
    info = await client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def _drain(redis_url: str, postgres_url: str) -> Row:
    """Rows that piled up while nothing was written."""
    silent = Timings(flush=3600, sweep=3600)
    rates = []
    async with (
        Database.connect(postgres_url) as database,
        opened(redis_url, postgres_url, rows(KIND), silent) as (budgets, _, _),
    ):
        for _ in range(ROUNDS):
            for first in range(0, LEDGER_ROWS, 500):
                wanted = [ask(principal(KIND, user=(first + at) % USERS)) for at in range(500)]
                for reservation in await asyncio.gather(*map(budgets.admit, wanted)):
                    budgets.settle(reservation, delivered())
            await budgets._queue.all_settled(10)
            before, began = (await total(database))[0], time.perf_counter()
            await budgets._queue.flush()
            seconds = time.perf_counter() - began
            assert (await total(database))[0] - before == LEDGER_ROWS
            rates.append(LEDGER_ROWS / seconds)
    return "ledger rows drained by one process", spread(rates, "a second")
