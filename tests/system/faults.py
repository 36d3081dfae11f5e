"""The fault matrix: parts broken in every way while every kind of work runs.

A row breaks one part of a system in one way, then mends it. Rows of different systems run at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from services.auth.standing.digests import Digests
from services.cli.client import ASSERTION
from services.local.fxa import DESKTOP_CLIENT_ID
from services.local.process import free_port
from tests.support.sql import sql
from tests.support.waiting import happens, until
from tests.system.clients import Caller, Seen, SeenStream
from tests.system.conftest import FULL
from tests.system.harness import DATABASE, SECRETS, TEMPLATE, System
from tests.system.proxy import Gate

PARTS = ("postgres", "valkey", "litellm", "fxa", "auth-1", "gateway-1")
#: Faults after which a gateway knows nothing of its streams any more.
DEADLY = ("killed", "restarted empty")
FAULTS = ("killed", "stopped", "slow", "refusing", "restarted empty")
#: Rows by the system that they run on, in their order: all in a full run, each part in a system of its own; otherwise
#: each part and each fault at least once. What leaves a charge for the end of a lease is first: that comes meanwhile.
ROWS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("postgres", "killed"), ("valkey", "slow"), ("postgres", "restarted empty"), ("valkey", "restarted empty")),
    (("gateway-1", "killed"), ("litellm", "refusing"), ("fxa", "stopped"), ("auth-1", "killed")),
)
if FULL:
    ROWS = tuple(
        tuple((part, fault) for fault in sorted(FAULTS, key=lambda fault: fault not in DEADLY)) for part in PARTS
    )
#: The work meanwhile. The exchanges: of an account by JWT, by an opaque token that nobody knows yet, of a device,
#: of an account's first sight. What FxA tells of two accounts: a new password, a deletion. What an operator does.
WORK = (
    *("exchange", "opaque", "device", "newcomer", "chat", "new stream", "stream in flight", "revoke", "block"),
    *("password", "deletion", "erasure", "export"),
)

#: What a gateway that dies has open beside a stream, by path: LiteLLM never answers it.
OPEN = {
    "search": ("/v1/search", {"query": "weather in Oslo"}),
    "embeddings": ("/v1/embeddings", {"model": "small-embeddings", "input": "Hi"}),
}
#: What these, and the stream, may cost in nano-dollars, at the prices of the double: the prompt's bound ("user", "Hi"
#: and 16 for the message) and the limit of 200; the row's price of a search; two bytes and 16 for the item.
BOUNDS = {"stream in flight": 22 * 1000 + 200 * 2000, "search": 5_000_000, "embeddings": 18 * 1000}

SLOW = 1.0
#: How long a fault lasts at the least, and at the most: longer than any answer may take.
HOLD, MOST_HOLD = 0.5, 6.5
#: How long a recovery may take, and how long a ledger row waits at most.
HEALTHY, GIVE_UP = 5.0, 20.0
_PIECE = 'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
_END = (
    'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    'data: {"id":"c","object":"chat.completion.chunk","choices":[],'
    '"usage":{"prompt_tokens":10,"completion_tokens":45,"total_tokens":55}}\n\ndata: [DONE]\n\n'
)
#: A stream of 45 events in 2.25 seconds.
PACED: list[tuple[str, Any]] = [*[("send", _PIECE), ("sleep", 0.05)] * 45, ("send", _END)]


@dataclass(frozen=True, slots=True)
class Charge:
    """A row of the ledger; ``seconds`` from admission to settlement."""

    outcome: str
    cost_nano: int
    seconds: float


@dataclass(slots=True)
class Row:
    """What was seen.

    ``healthy``: seconds from the fault's end until all worked; below 0: it never did. ``lost``: work without its row
    in the ledger. ``late``: request ids, by the work, whose row comes when their lease is over; ``charges``: these
    rows. ``undone``: what does not hold of the accounts that ended, or changed, once the same was sent again.
    """

    part: str
    fault: str
    seen: dict[str, Seen | SeenStream] = field(default_factory=dict)
    healthy: float = -1.0
    lost: list[str] = field(default_factory=list)
    late: dict[str, str] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)
    charges: dict[str, Charge] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ending:
    """An account that changes or ends, with the tokens that it had before, and FxA's token about it, if it is FxA's."""

    uid: str
    token: str
    jwt: str
    event: str = ""


@dataclass(slots=True)
class Prepared:
    """Credentials made while all was well, so that only the request itself is put to the test."""

    user_id: str
    token: str
    jwt: str
    opaque: str
    newcomer: str
    assertion: str
    device: Any
    spare: str
    spare_token: str
    changed: Ending
    deleted: Ending
    erased: Ending


class Breaker:
    """Breaks one part of a system, and mends it."""

    def __init__(self, system: System, part: str, gate: Gate) -> None:
        self._system = system
        self._part = system.parts[part]
        self._name = part
        self._gate = gate

    async def apply(self, fault: str) -> None:
        match fault:
            case "killed":
                self._part.kill()
            case "stopped":
                self._part.pause()
            case "slow":
                self._gate.latency = SLOW
            case "refusing":
                await self._gate.refuse()
            case _:
                await self._restart_empty()

    async def mend(self, fault: str) -> None:
        match fault:
            case "killed":
                self._part.start()
                await self._part.wait_ready()
            case "stopped":
                self._part.resume()
            case "slow":
                self._gate.latency = 0.0
            case "refusing":
                await self._gate.accept()

    async def restore(self, fault: str) -> None:
        """Restore after a row what a restart without data has taken."""
        if fault == "restarted empty" and self._name == "postgres":
            await self._swap("drop database mlpa", "alter database mlpa_full rename to mlpa")

    async def _restart_empty(self) -> None:
        if self._name == "postgres":
            await self._swap(
                "alter database mlpa rename to mlpa_full", f"create database {DATABASE} template {TEMPLATE}"
            )
            return
        self._part.kill()
        if self._name == "valkey":
            shutil.rmtree(self._system.folder / "valkey" / "appendonlydir")
        self._part.start()
        await self._part.wait_ready()

    async def _swap(self, *statements: str) -> None:
        """Another database under the same name, and a restart of the server."""
        await self._gate.refuse()
        admin = self._system.postgres.url("postgres")
        sql(admin, "select pg_terminate_backend(pid) from pg_stat_activity where datname = %(name)s", name=DATABASE)
        for statement in statements:
            sql(admin, statement)
        await self._part.restart()
        await self._gate.accept()


async def prepare(caller: Caller) -> Prepared:
    uid = uuid.uuid4().hex
    user_id, token = await caller.account(uid)
    assert (seen := await caller.chat(token)).status == 200, seen
    device = await caller.enrolled()
    assert (seen := await caller.exchange_device(device)).status == 200, seen
    challenge = (await caller.challenge(device)).json()["challenge"]
    spare, spare_token = await caller.account()
    endings = [await _ending(caller) for _ in range(3)]
    soon = (int(time.time()) + 1) * 1000
    return Prepared(
        changed=replace(endings[0], event=await caller.event(endings[0].uid, "password-change", changeTime=soon)),
        deleted=replace(endings[1], event=await caller.event(endings[1].uid, "delete-user")),
        erased=endings[2],
        user_id=user_id,
        token=token,
        jwt=await caller.fxa_token(uid=uid),
        opaque=await caller.fxa_token(uid=uid, kind="opaque"),
        newcomer=await caller.fxa_token(),
        assertion=caller.assertion(device, challenge),
        device=device,
        spare=spare,
        spare_token=spare_token,
    )


async def _ending(caller: Caller) -> Ending:
    uid = uuid.uuid4().hex
    jwt = await caller.fxa_token(uid=uid)
    exchanged = await caller.exchange(jwt)
    assert exchanged.status == 200, exchanged
    token = str(exchanged.json()["access_token"])
    chat = await caller.chat(token)
    assert chat.status == 200, chat
    return Ending(uid, token, jwt)


class Work:
    """All kinds of work at once, on one system."""

    def __init__(self, caller: Caller, ready: Prepared, gateway: str) -> None:
        self._caller, self._ready, self._gateway = caller, ready, gateway
        self.in_flight = SeenStream(uuid.uuid4().hex)
        self.ids = {name: uuid.uuid4().hex for name in ("chat", "new stream", *OPEN)}

    def begin_stream(self, gateway: str) -> asyncio.Task[SeenStream]:
        stream = self._caller.stream(self._ready.token, self.in_flight, model="slow", gateway=gateway)
        return asyncio.create_task(stream)

    async def begin_open(self, gateway: str) -> list[asyncio.Task[Seen]]:
        """What never ends, once its money is reserved."""
        caller, token, url = self._caller, self._ready.token, self._caller.system.url(gateway)
        for scripted in ("/v1/search/exa-search", "small-embeddings"):
            await caller.script(scripted, [("hang", None)])
        tasks = []
        for name, (path, body) in OPEN.items():
            headers = {"Authorization": f"Bearer {token}", "X-Request-ID": self.ids[name]}
            tasks.append(asyncio.create_task(caller.ask("POST", url + path, json=body, headers=headers, patience=60)))

        async def reserved() -> bool:
            state = (await caller.budget(token, gateway)).json()
            return bool(state["reserved_usd"] == (BOUNDS["search"] + BOUNDS["embeddings"]) / 10**9)

        await until(reserved)
        return tasks

    def start(self) -> dict[str, asyncio.Task[Any]]:
        caller, ready = self._caller, self._ready
        stream = SeenStream(self.ids["new stream"])
        work: dict[str, Awaitable[Any]] = {
            "exchange": caller.exchange(ready.jwt),
            "opaque": caller.exchange(ready.opaque),
            "device": caller.exchange(ready.assertion, ASSERTION),
            "newcomer": caller.exchange(ready.newcomer),
            "chat": caller.chat(ready.token, gateway=self._gateway, request_id=self.ids["chat"]),
            "new stream": caller.stream(ready.token, stream, gateway=self._gateway),
            "revoke": caller.ask("POST", f"{caller.system.auth_url}/revoke", data={"token": ready.spare_token}),
            "block": caller.block(ready.spare),
            "password": caller.deliver(ready.changed.event),
            "deletion": caller.deliver(ready.deleted.event),
            "erasure": caller.erase(ready.erased.uid),
            "export": caller.export(ready.user_id),
        }
        return {name: asyncio.ensure_future(one) for name, one in work.items()}


async def run_row(system: System, caller: Caller, part: str, fault: str, breaker: Breaker) -> Row:
    row = Row(part, fault)
    ready = await prepare(caller)
    await caller.script("slow", PACED)
    work = Work(caller, ready, system.gateways[-1])
    died = part.startswith("gateway") and fault in DEADLY
    hanging = await work.begin_open(system.gateways[0]) if died else []
    in_flight = work.begin_stream(system.gateways[0])
    await happens(lambda: work.in_flight.events >= 5, 10)
    await breaker.apply(fault)
    began = time.monotonic()
    tasks = work.start()
    await asyncio.wait(tasks.values(), timeout=MOST_HOLD)
    await asyncio.sleep(max(0.0, HOLD - (time.monotonic() - began)))
    if part == "litellm" and fault in ("killed", "refusing"):
        row.seen["chat later"] = await _once_noticed(caller, ready.token)
    await breaker.mend(fault)
    mended = time.monotonic()
    well = asyncio.create_task(_all_well(caller, ready, fresh=fault == "restarted empty" and part == "postgres"))
    for name, task in tasks.items():
        row.seen[name] = await task
    row.seen["stream in flight"] = await in_flight
    await asyncio.gather(*hanging)
    if await well:
        row.healthy = time.monotonic() - mended
    await _look_into_ledger(row, system, work)
    row.undone = [each async for each in _undone(row, system, caller, ready)]
    await breaker.restore(fault)
    return row


async def _once_noticed(caller: Caller, token: str) -> Seen:
    """A chat once the gateway has seen two health checks of LiteLLM fail."""
    for _ in range(80):
        checks = (await caller.readiness("gateway-1")).json()["checks"]
        if checks["litellm"]["error"] == "two health checks of LiteLLM failed":
            break
        await asyncio.sleep(0.1)
    return await caller.chat(token)


async def _all_well(caller: Caller, ready: Prepared, *, fresh: bool) -> bool:
    """Whether everything works again, within the time that a row has.

    :param fresh: PostgreSQL knows nobody any more; then new ones have to do.
    """
    device, uid, spare = caller.device(), uuid.uuid4().hex, ready.spare
    left = {"ready", "exchange", "opaque", "enrol", "unblock", *caller.system.gateways}
    left |= {"password", "deletion", "erasure"}

    async def attempt(name: str) -> bool:
        match name:
            case "ready":
                services = (*caller.system.auths, *caller.system.gateways)
                seen = await asyncio.gather(*map(caller.readiness, services))
                return all(one.status == 200 and one.json()["status"] == "ready" for one in seen)
            case "exchange":
                return (await caller.exchange(ready.jwt)).status == 200
            case "opaque":
                return (await caller.exchange(await caller.fxa_token(uid=uid, kind="opaque"))).status == 200
            case "enrol":
                return (await caller.enrol(device)).status == 201
            case "unblock":
                return (await caller.block(spare, undo=True)).status == 200
            case "password":
                return (await caller.deliver(ready.changed.event)).status == 200
            case "deletion":
                return (await caller.deliver(ready.deleted.event)).status == 200
            case "erasure":  # 404: PostgreSQL took it the first time
                return (await caller.erase(ready.erased.uid)).status in (204, 404)
            case gateway:
                return (await caller.chat(ready.token, gateway=gateway)).status == 200

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GIVE_UP):
            if fresh:
                spare, _ = await caller.account(uid)
            while True:
                names = sorted(left)
                for name, well in zip(names, await asyncio.gather(*map(attempt, names)), strict=True):
                    if well:
                        left.discard(name)
                if not left:
                    return True
                await asyncio.sleep(0.1)
    return False


async def _look_into_ledger(row: Row, system: System, work: Work) -> None:
    """Every request that LiteLLM may have answered has its row, at the latest when its lease is over."""
    expected = {"stream in flight": work.in_flight.request_id}
    for name in ("chat", "new stream"):
        if row.seen[name].status == 200:
            expected[name] = work.ids[name]

    def missing() -> list[str]:
        statement = "select request_id from ledger where request_id = any(%(ids)s)"
        found = {name for (name,) in system.sql(statement, ids=list(expected.values()))}
        return [name for name, request_id in expected.items() if request_id not in found]

    await happens(lambda: not missing(), 3)
    absent = missing()
    if row.part.startswith("gateway") and row.fault in DEADLY:
        row.late = {"stream in flight": work.in_flight.request_id, **{name: work.ids[name] for name in OPEN}}
    row.lost = [name for name in absent if name not in row.late]


async def _undone(row: Row, system: System, caller: Caller, ready: Prepared) -> AsyncIterator[str]:
    """What does not hold of the accounts that changed or ended; also after Redis has lost them."""
    knows = not (row.part == "postgres" and row.fault == "restarted empty")
    exports = [row.seen["export"]]

    async def exported() -> bool:
        exports.append(await caller.export(ready.user_id))
        return exports[-1].status == 200

    if not await happens(exported, GIVE_UP):
        yield "nothing is exported"
    if knows and any(one.status == 200 and not one.json()["postgresql"]["ledger"] for one in exports):
        yield "an export has no ledger"
    for emptied in (False, True) if row.part in ("postgres", "valkey") else (False,):
        if emptied:
            with system.valkey.client() as client:
                for uid in (ready.changed.uid, ready.deleted.uid, ready.erased.uid):
                    client.delete(*client.keys(f"*{uid}*"), "none")
        endings = {"password": ready.changed, "deletion": ready.deleted, **({"erasure": ready.erased} if knows else {})}
        for name, ending in endings.items():
            if (chat := await caller.chat(ending.token)).status not in (401, 403):
                yield f"chat after {name}, Redis {'emptied' if emptied else 'as it is'}: {chat}"
            if name != "erasure" and (exchange := await caller.exchange(ending.jwt)).status != 400:
                yield f"exchange after {name}, Redis {'emptied' if emptied else 'as it is'}: {exchange}"
    ended = [ready.deleted.uid, ready.erased.uid] if knows else []
    if system.sql("select user_id from users where identity = any(%(ended)s)", ended=ended):
        yield "a user is left"
    digests = list(map(Digests([SECRETS["ERASURE_SECRET"].encode()]).of, ended))
    entries = "select count(*) from audit_log where action = 'user.erase' and subject = any(%(digests)s)"
    forgotten = "select count(*) from erasures where digest = any(%(digests)s) and forgotten_at is not null"

    async def finished() -> bool:
        return system.sql(forgotten, digests=digests) == [(len(ended),)]

    if not await happens(finished, GIVE_UP):
        yield "an erasure is not finished"
    if system.sql(entries, digests=digests) != [(len(ended),)]:
        yield "an erasure did not happen exactly once"


async def run_rows(folder: Path, template: Path, cases: Sequence[tuple[str, str]]) -> list[Row]:
    """Rows of one system."""
    parts = {part for part, _ in cases}
    gate_ports = {part: free_port() for part in parts}
    system = System(
        folder,
        template,
        gateways=2 if "gateway-1" in parts else 1,
        ports=gate_ports,
        environment={"KEEPALIVE_SECONDS": "1", "FXA_CLIENT_IDS": DESKTOP_CLIENT_ID},
    )
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        gates = {
            part: await stack.enter_async_context(Gate(system.listens[part], port)) for part, port in gate_ports.items()
        }
        stack.callback(system.stop)
        await system.start()
        async with Caller.open(system) as caller:
            for part, fault in cases:
                rows.append(await run_row(system, caller, part, fault, Breaker(system, part, gates[part])))
            await _wait_for_late(system, rows)
    return rows


async def _wait_for_late(system: System, rows: list[Row]) -> None:
    """The rows of requests whose gateway was killed: charged whole when the lease ends."""
    statement = (
        "select outcome, cost_nano, extract(epoch from settled_at - admitted_at)::float from ledger "
        "where request_id = %(id)s"
    )
    for row in rows:
        for name, request_id in row.late.items():
            found: list[tuple[Any, ...]] = []
            for _ in range(450):
                if found := system.sql(statement, id=request_id):
                    row.charges[name] = Charge(*found[0])
                    break
                await asyncio.sleep(0.1)
            if not found:
                row.lost.append(name)
