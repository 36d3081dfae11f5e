"""Mixed traffic through a rolling restart, a new key and a migration: nobody notices, and the books are right."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from jose import jws

from services.auth.tokens.key_ring import KeyRing, create_key
from services.local.device import Device
from services.local.process import free_port
from shared.stores import migrate
from tests.system.balancing import BalancedCaller
from tests.system.clients import Seen, SeenStream
from tests.system.conftest import FULL, TABLES
from tests.system.harness import DATABASE, HOST, System

#: Seconds of traffic, between two rounds of restarts, and from one replica's restart to the next's.
SECONDS, ROUND, PAUSE = (1200, 60, 5) if FULL else (10, 10, 0)
USERS, DEVICES, WORKERS = (40, 10, 12) if FULL else (8, 3, 3)
#: What the double's answers cost, in nano-dollars: 10 tokens in, 2 out; and the cost that it tells of itself.
STREAM_COST, CHAT_COST = 10 * 1000 + 2 * 2000, 25_000
#: How much more than a while after its start a process may hold at the end: KiB, descriptors.
MORE_MEMORY, MORE_DESCRIPTORS = 40_000, 40


@dataclass(slots=True)
class Books:
    """What clients saw. ``delivered``: request ids that ended well, with their cost; ``dropped``: those cut by us."""

    delivered: dict[str, int] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


class Soak:
    def __init__(self, caller: BalancedCaller) -> None:
        self.caller = caller
        self.books = Books()
        self._random = random.Random(7)
        self._accounts: list[tuple[str, str]] = []
        self._tokens: list[str] = []
        self._devices: list[Device] = []

    async def prepare(self) -> None:
        for _ in range(USERS):
            uid = uuid.uuid4().hex
            self._accounts.append((uid, await self.caller.fxa_token(uid=uid)))
            self._tokens.append(str((await self.caller.exchange(self._accounts[-1][1])).json()["access_token"]))
        for _ in range(DEVICES):
            device = self.caller.device()
            assert (await self.caller.enrol(device)).status == 201
            self._devices.append(device)

    async def work(self, until: float) -> None:
        kinds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (5, self._chat),
            (5, self._stream),
            (2, self._drop),
            (2, self._renew),
            (1, self._device),
            (1, self._look),
            (1, self._enrol),
        ]
        weights = [weight for weight, _ in kinds]
        while time.monotonic() < until:
            kind = self._random.choices(kinds, weights)[0][1]
            self.books.kinds[kind.__name__.strip("_")] += 1
            await kind()
            await asyncio.sleep(self._random.uniform(0, 0.2))

    async def _chat(self) -> None:
        request_id = uuid.uuid4().hex
        seen = await self.caller.chat(self._token(), request_id=request_id)
        if self._good(seen, "chat"):
            self.books.delivered[request_id] = CHAT_COST

    async def _stream(self) -> None:
        seen = await self.caller.stream(self._token())
        if seen.status == 200 and seen.done and not seen.error:
            self.books.delivered[seen.request_id] = STREAM_COST
        else:
            self.books.failures.append(f"stream {seen}")

    async def _drop(self) -> None:
        """A client that leaves in the middle."""
        seen = SeenStream(uuid.uuid4().hex)
        task = asyncio.create_task(self.caller.stream(self._token(), seen, model="slow"))
        await asyncio.sleep(self._random.uniform(0.05, 0.6))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if seen.status == 200:
            self.books.dropped.add(seen.request_id)

    async def _renew(self) -> None:
        at = self._random.randrange(USERS)
        seen = await self.caller.exchange(self._accounts[at][1])
        if self._good(seen, "exchange"):
            self._tokens[at] = str(seen.json()["access_token"])

    async def _device(self) -> None:
        if not self._devices:
            return
        device = self._devices.pop()  # one assertion of a device at a time
        self._good(await self.caller.exchange_device(device), "device")
        self._devices.append(device)

    async def _look(self) -> None:
        self._good(await self.caller.budget(self._token()), "budget")
        self._good(await self.caller.admin("GET", "/user?limit=3"), "users")

    async def _enrol(self) -> None:
        self._good(await self.caller.enrol(self.caller.device()), "enrol", 201)

    def _token(self) -> str:
        return self._random.choice(self._tokens)

    def _good(self, seen: Seen, what: str, status: int = 200) -> bool:
        if seen.status != status:
            self.books.failures.append(f"{what} {seen}")
        return seen.status == status


class _Gauge:
    """What each process held a while after its start."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._first: dict[int, tuple[str, int, int]] = {}

    def look(self) -> None:
        for name in (*self._system.auths, *self._system.gateways):
            pid = self._system.parts[name].process.pid
            if pid is not None and pid not in self._first:
                self._first[pid] = (name, *_held(pid))

    def grown(self) -> list[str]:
        found = []
        for pid, (name, memory, descriptors) in self._first.items():
            if pid == self._system.parts[name].process.pid:
                now = _held(pid)
                if now[0] - memory > MORE_MEMORY or now[1] - descriptors > MORE_DESCRIPTORS:
                    found.append(f"{name}: {memory} KiB, {descriptors} descriptors; then {now}")
        return found


def _held(pid: int) -> tuple[int, int]:
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]), len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def _restart(system: System, number: int) -> list[str]:
    """An auth and a gateway, as a rollout does it; what went wrong."""
    wrong = []
    for name in (f"auth-{number}", f"gateway-{number}"):
        system.parts[name].process.signal(signal.SIGTERM)
    for name in (f"auth-{number}", f"gateway-{number}"):
        part = system.parts[name]
        if not await asyncio.to_thread(part.process.wait, 20):
            wrong.append(f"{name} did not end")
            part.kill()
        elif part.process.exit_reason != "exit code 0":
            wrong.append(f"{name}: {part.process.exit_reason}")
        part.start()
    for name in (f"auth-{number}", f"gateway-{number}"):
        await system.parts[name].wait_ready()
    return wrong


async def _roll(system: System, until: float, gauge: _Gauge) -> list[str]:
    """Rounds of restarts; in each a new key is published, and a migration runs beside the requests."""
    wrong: list[str] = []
    url = system.postgres.url(DATABASE)
    while time.monotonic() < until - 5:
        began = time.monotonic()
        create_key(system.folder / "keys", activate_at=time.time() + 8)
        for number in (1, 2):
            wrong += await _restart(system, number)
            await asyncio.to_thread(migrate.upgrade, url)
            await asyncio.sleep(PAUSE)
        gauge.look()
        await asyncio.sleep(max(0.0, min(began + ROUND, until) - time.monotonic()))
    return wrong


@asynccontextmanager
async def _system(folder: Path, template: Path) -> AsyncIterator[tuple[System, BalancedCaller]]:
    front = free_port()
    system = System(
        folder,
        template,
        auths=2,
        gateways=2,
        environment={"MLPA_ISSUER": f"http://{HOST}:{front}", "DRAIN_DELAY_SECONDS": "1", "LOG_LEVEL": "WARNING"},
    )
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        caller = BalancedCaller(system, session)
        try:
            async with caller.following(front):
                await system.start()
                yield system, caller
        finally:
            system.stop()


async def test_nobody_notices_a_rolling_restart(tmp_path: Path, template: Path) -> None:
    async with _system(tmp_path / "soak", template) as (system, caller):
        soak, gauge, began = Soak(caller), _Gauge(system), time.time()
        await soak.prepare()
        until = time.monotonic() + SECONDS
        rolling = asyncio.create_task(_roll(system, until, gauge))
        await asyncio.gather(*(soak.work(until) for _ in range(WORKERS)))
        wrong = await rolling
        books = soak.books
        await _settled(system, books)
        _report(books, caller)
        assert not wrong, wrong
        assert not books.failures, "\n".join(books.failures[:20])
        assert gauge.grown() == []
        _check_ledger(system, books)
        token = (await caller.exchange(await caller.fxa_token())).json()["access_token"]
        newest = KeyRing(system.folder / "keys").signing_key()
        assert jws.get_unverified_header(token)["kid"] == newest.kid
        assert newest.activation > began


async def _settled(system: System, books: Books) -> None:
    """Until the last settlement is in the ledger; what a client dropped settles within a moment too."""
    for _ in range(100):
        found = {name for (name,) in system.sql("select request_id from ledger")}
        if books.delivered.keys() | books.dropped <= found:
            return
        await asyncio.sleep(0.1)


def _check_ledger(system: System, books: Books) -> None:
    rows = system.sql("select request_id, cost_nano, outcome from ledger")
    costs = {request_id: cost for request_id, cost, _ in rows}
    assert len(costs) == len(rows), "a request stands in the ledger twice"
    assert {request_id: costs.get(request_id) for request_id in books.delivered} == books.delivered
    assert books.dropped <= costs.keys()
    assert not [row for row in rows if row[2] == "expired"], "a lease ended: a gateway left without settling"


def _report(books: Books, caller: BalancedCaller) -> None:
    kinds = ", ".join(f"{number} {kind}" for kind, number in books.kinds.most_common())
    TABLES.append(
        (
            f"soak of {SECONDS} s",
            [kinds, f"{len(books.failures)} failures, {caller.retries} asked again, {len(books.delivered)} delivered"],
        )
    )
