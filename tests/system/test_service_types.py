"""Service types changed while a system runs: several processes under supervisors, under load."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.local.process import Process, answers
from tests.support.waiting import wait_until
from tests.system.clients import Caller
from tests.system.harness import HOST, SERVICE_TYPES, Part, System
from tests.system.test_start_and_end import _END, _EVENT, _children

#: Within which a change of the file holds everywhere.
SOON = 10.0
SWITCHED_OFF = SERVICE_TYPES.replace('name = "ai"', 'name = "ai"\nenabled = false')


class Fleet:
    """Two gateways and two auths, each pair under a supervisor, with ports of operators."""

    caller: Caller

    def __init__(self, system: System, file: Path) -> None:
        self.system, self.file = system, file
        file.write_text(SERVICE_TYPES)
        self.parts: list[Part] = []
        self.ops: list[int] = []
        for name in ("gateway", "auth"):
            port = _free_ports(3)
            ops = port + 1
            system.listens[f"{name}s"] = system.ports[f"{name}s"] = port
            environment = {"PORT": str(port), "AUTH_PORT": str(port), "OPS_PORT": str(ops), "SERVICE_TYPES": str(file)}
            program = system.program(name, "--workers", "2", environment=environment)
            urls = [f"http://{HOST}:{ops + number}/health/readiness" for number in (0, 1)]
            log = system.folder / "logs" / f"{name}s.log"
            self.parts.append(Part(name, Process(program, log), lambda urls=urls: all(map(answers, urls))))  # type: ignore[misc]
            self.ops += [ops, ops + 1]

    @contextlib.contextmanager
    def running(self) -> Iterator[Fleet]:
        """Signals come all through the start."""
        for part in self.parts:
            part.start()
        try:
            wait_until(lambda: all(_children(part.process.pid) for part in self.parts))
            for _ in range(40):
                self.hang_up()
                time.sleep(0.05)
            for part in self.parts:
                part.process.wait_ready(part.ready, timeout=60)
            yield self
        finally:
            for part in self.parts:
                part.kill()

    async def restore(self) -> None:
        """Bring back the table that each test begins with."""
        self.file.write_text(SERVICE_TYPES)
        self.hang_up()
        await self.everywhere('service_type_enabled{service_type="ai"}', 1)

    def hang_up(self) -> None:
        for part in self.parts:
            part.process.signal(signal.SIGHUP)

    async def metric(self, line: str) -> list[float]:
        """Its value in each process that has it."""
        pages = [await self.caller.ask("GET", f"http://{HOST}:{port}/metrics") for port in self.ops]
        found = [page.body.decode().partition(f"\n{line} ")[2].split() for page in pages]
        return [float(words[0]) for words in found if words]

    async def until(self, true: Callable[[], Awaitable[Any]], seconds: float = SOON) -> float:
        """The seconds that it took."""
        started = time.monotonic()
        async with asyncio.timeout(seconds):
            while not await true():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return time.monotonic() - started

    async def everywhere(self, line: str, value: float) -> None:
        async def so() -> bool:
            return await self.metric(line) == [value] * len(self.ops)

        await self.until(so)


def _free_ports(number: int) -> int:
    """The first of so many free ports in a row, below those that clients' connections get."""
    while True:
        first = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + number):
                stack.enter_context(socket.socket()).bind((HOST, port))
            return first


@pytest.fixture(scope="module")
def processes(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(system, tmp_path_factory.mktemp("types") / "types.toml").running() as fleet:
        yield fleet


@pytest.fixture
async def fleet(processes: Fleet) -> AsyncIterator[Fleet]:
    async with Caller.open(processes.system) as processes.caller:
        yield processes
        await processes.restore()


class Load:
    """Chats and exchanges one after the other on the fleet, and their answers by the second half of the run."""

    def __init__(self, fleet: Fleet, token: str) -> None:
        self._fleet, self._token = fleet, token
        self.chats: Counter[tuple[int, str]] = Counter()
        self.exchanges: Counter[tuple[int, str]] = Counter()

    def forget(self) -> None:
        """Count requests from now on: answers to those before are no part of it."""
        self.chats, self.exchanges = Counter(), Counter()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        tasks = [asyncio.create_task(work()) for work in (self._chat, self._chat, self._exchange)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _chat(self) -> None:
        while True:
            chats = self.chats
            seen = await self._fleet.caller.chat(self._token, gateway="gateways")
            chats[seen.status, seen.code] += 1
            await asyncio.sleep(0.02)

    async def _exchange(self) -> None:
        caller = self._fleet.caller
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "scope": "ai",
        }
        while True:
            form["subject_token"] = await caller.fxa_token()
            exchanges = self.exchanges
            seen = await caller.ask("POST", f"{self._fleet.system.url('auths')}/token", data=form)
            exchanges[seen.status, seen.code] += 1
            await asyncio.sleep(0.05)


def test_a_hang_up_during_the_start_ends_no_worker(processes: Fleet) -> None:
    logs = processes.system.logs()
    assert "worker_ended" not in logs["gateways"] + logs["auths"]


async def test_a_broken_table_changes_nothing_in_any_process_under_load(fleet: Fleet) -> None:
    _, token = await fleet.caller.account()
    async with Load(fleet, token).running() as load:
        broken = SERVICE_TYPES.replace("rpm = 100000", "rpm = -1", 1)
        line = broken.splitlines().index("rpm = -1") + 1
        fleet.file.write_text(broken)
        fleet.hang_up()
        await fleet.everywhere("service_types_reload_failures_total", 1)
        await asyncio.sleep(1.2)  # readiness is kept for a second
        for port in fleet.ops:
            ready = await fleet.caller.ask("GET", f"http://{HOST}:{port}/health/readiness")
            assert (ready.status, ready.json()["status"]) == (200, "degraded")
            assert f"line {line}" in ready.json()["checks"]["service_types"]["error"]
    assert set(load.chats) == {(200, "")}
    assert set(load.exchanges) == {(200, "")}
    logs = fleet.system.logs()
    for name in ("gateways", "auths"):
        assert logs[name].count("service_types_refused") == 2
        assert "worker_ended" not in logs[name]


async def test_a_switch_holds_in_all_processes_and_open_streams_go_on(fleet: Fleet) -> None:
    caller = fleet.caller
    _, token = await caller.account()
    _, other = await caller.account(scope="s2s")
    await caller.script("slow", [("send", _EVENT), ("gate", "open"), ("send", _END)])
    streams = [asyncio.create_task(caller.stream(token, model="slow", gateway="gateways")) for _ in range(4)]
    async with Load(fleet, token).running() as load:
        await asyncio.sleep(0.5)
        assert set(load.chats) == {(200, "")}
        fleet.file.write_text(SWITCHED_OFF)
        await fleet.everywhere('service_type_enabled{service_type="ai"}', 0)  # without a signal
        load.forget()
        await asyncio.sleep(0.7)
        off = {(503, "unavailable")}, {(503, "temporarily_unavailable")}
        assert (set(load.chats), set(load.exchanges)) == off
        assert {(await caller.chat(other, gateway="gateways")).status for _ in range(6)} == {200}
        refused = await caller.chat(token, gateway="gateways")
        assert int(refused.headers["Retry-After"]) > 1
        assert (await caller.budget(token, "gateways")).status == 503
        fleet.file.write_text(SERVICE_TYPES)
        fleet.hang_up()
        await fleet.everywhere('service_type_enabled{service_type="ai"}', 1)
        load.forget()
        await asyncio.sleep(0.7)
        assert (set(load.chats), set(load.exchanges)) == ({(200, "")}, {(200, "")})
    await caller.open_gate("open")
    assert all(stream.done for stream in await asyncio.gather(*streams))
    assert sum(await fleet.metric('chat_availability_total{outcome="excluded",reason="switched_off"}')) > 0


async def test_a_row_that_is_not_enforced_refuses_nobody_and_an_exception_lifts_rates_in_all_processes(
    fleet: Fleet,
) -> None:
    caller = fleet.caller
    _, token = await caller.account()
    excepted, lifted = await caller.account()
    slow = SERVICE_TYPES.replace("rpm = 100000", "rpm = 1", 1)
    gauge, would = 'service_type_enforced{service_type="ai"}', 'would_refuse_total{reason="rpm",service_type="ai"}'
    refused = {(429, "rate_limit_exceeded")}
    async with Load(fleet, token).running() as load, Load(fleet, lifted).running() as other:

        async def chats(seconds: float = 0.7) -> tuple[set[tuple[int, str]], set[tuple[int, str]]]:
            """The answers of both users from now on."""
            load.forget()
            other.forget()
            await asyncio.sleep(seconds)
            return set(load.chats), set(other.chats)

        fleet.file.write_text(slow)
        fleet.hang_up()

        async def slowed() -> bool:
            return await chats() == (refused, refused)

        await fleet.until(slowed)
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        exception = {"until": until, "without_rates": True}
        assert (await caller.admin("POST", f"/user/{excepted}/exception", json=exception)).status == 200

        async def helped() -> bool:
            return await chats() == (refused, {(200, "")})

        await fleet.until(helped)
        row = f'name = "ai"\nenforce = false\nenforce_until = {until}'
        fleet.file.write_text(slow.replace('name = "ai"', row))
        fleet.hang_up()
        await fleet.everywhere(gauge, 0)
        assert await chats() == ({(200, "")}, {(200, "")})

        async def counted() -> bool:
            return sum(await fleet.metric(would)) > 0

        await fleet.until(counted)
        assert (await caller.admin("POST", f"/user/{excepted}/block", json={})).status == 200
        assert await chats() == ({(200, "")}, {(403, "user_blocked")})
        fleet.file.write_text(slow)
        fleet.hang_up()
        await fleet.everywhere(gauge, 1)
        assert (await chats())[0] == refused


async def test_a_row_is_added_and_a_model_switched_off_without_a_restart(fleet: Fleet) -> None:
    caller, system = fleet.caller, fleet.system
    table = SERVICE_TYPES + SERVICE_TYPES[SERVICE_TYPES.rindex("[[service_type]]") :].replace('"s2s"', '"memories"')
    fleet.file.write_text(table)
    fleet.hang_up()
    await fleet.everywhere('service_type_enabled{service_type="memories"}', 1)
    system.ports["auth-1"], before = system.ports["auths"], system.ports["auth-1"]
    try:
        _, token = await caller.account(scope="memories")
    finally:
        system.ports["auth-1"] = before
    assert {(await caller.chat(token, gateway="gateways")).status for _ in range(8)} == {200}
    fleet.file.write_text(f'{table}\n[[model]]\nname = "double"\nenabled = false\n')
    fleet.hang_up()

    async def refused() -> bool:
        return (await caller.chat(token, gateway="gateways")).status != 200

    await fleet.until(refused)
    await asyncio.sleep(1)
    answers = [await caller.chat(token, gateway="gateways") for _ in range(8)]
    assert {(one.status, one.code, one.json()["error"]["mlpa_code"]) for one in answers} == {(400, "invalid_model", 8)}
