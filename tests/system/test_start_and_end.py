"""The services start without their dependencies, and end on a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from services.cli.client import ACCESS_TOKEN, GRANT_TYPE
from services.local.process import Process, answers, free_port
from tests.support.waiting import until
from tests.system.clients import Caller
from tests.system.harness import HOST, Part, System


@pytest.fixture
async def workers(system: System) -> AsyncIterator[Part]:
    """Two more gateways on one port."""
    system.listens["workers"] = system.ports["workers"] = free_port()
    system.listens["ops"] = _two_free_ports()
    environment = {"PORT": str(system.listens["workers"]), "OPS_PORT": str(system.listens["ops"])}
    program = system.program("gateway", "--workers", "2", environment=environment)
    urls = [f"http://{HOST}:{system.listens['ops'] + number}/health/readiness" for number in (0, 1)]
    process = Process(program, system.folder / "logs" / "workers.log")
    part = Part("workers", process, lambda: all(answers(url) for url in urls))
    part.start()
    try:
        await part.wait_ready()
        yield part
    finally:
        part.kill()


async def test_workers_share_a_port_and_drain_together(system: System, caller: Caller, workers: Part) -> None:
    _, token = await caller.account()
    await asyncio.gather(*(caller.chat(token, gateway="workers") for _ in range(40)))
    ops = system.listens["ops"]
    served = [await _chats(caller, port) for port in (ops, ops + 1)]
    assert sum(served) == 40
    assert min(served) > 0
    assert (await caller.ask("GET", f"{system.url('workers')}/metrics")).status == 404

    await caller.script("slow", [("send", _EVENT), ("sleep", 1.2), ("send", _EVENT), ("send", _END)])
    streams = [asyncio.create_task(caller.stream(token, model="slow", gateway="workers")) for _ in range(6)]
    await asyncio.sleep(0.4)
    workers.process.signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    # one that has no stream has ended by now
    ready = {(await caller.ask("GET", f"http://{HOST}:{port}/health/readiness")).status for port in (ops, ops + 1)}
    assert 503 in ready
    assert ready <= {0, 503}
    for _ in range(40):
        refused = await caller.chat(token, gateway="workers")
        if refused.status:
            break  # else it was sent over a connection of one that has ended
    assert (refused.status, refused.code) == (503, "unavailable")
    assert "Retry-After" in refused.headers
    state = await caller.budget(token, "workers")
    assert (state.status, state.code) in ((503, "unavailable"), (0, ""))  # by one that drains, or one that has ended
    seen = await asyncio.gather(*streams)
    assert all(stream.done and not stream.error for stream in seen), [str(stream) for stream in seen]
    assert await asyncio.to_thread(workers.process.wait, 8)
    assert workers.process.exit_reason == "exit code 0"


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
async def test_workers_drain_when_their_parent_is_killed(workers: Part) -> None:
    parent = workers.process.pid
    assert parent is not None
    children, before = _children(parent), workers.process.log.read_text()
    assert len(children) == 2
    os.kill(parent, signal.SIGKILL)  # alone: `kill` of a part ends the whole process group
    await until(lambda: not any(map(_runs, children)))
    log = workers.process.log.read_text().removeprefix(before)
    assert log.count('"drain_begun"') == log.count('"stopped"') == 2


async def test_an_exchange_in_flight_is_answered_when_auth_stops(system: System, caller: Caller) -> None:
    """Its body is still coming. That auth then ends at once, and not when its time to drain is over, shows too."""
    port = system.listens["stopping"] = free_port()
    url = f"http://{HOST}:{port}"
    program = system.program("auth", environment={"AUTH_PORT": str(port), "DRAIN_SECONDS": "30"})
    process = Process(program, system.folder / "logs" / "stopping.log")
    part = Part("stopping", process, lambda: answers(f"{url}/health/readiness"))
    form = {"grant_type": GRANT_TYPE, "subject_token_type": ACCESS_TOKEN, "scope": "ai"}
    whole = urlencode({**form, "subject_token": await caller.fxa_token()}).encode()
    stopped = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield whole[:100]
        await stopped.wait()
        await asyncio.sleep(2.5)
        yield whole[100:]

    headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(whole))}
    part.start()
    try:
        await part.wait_ready()
        exchange = asyncio.create_task(caller.ask("POST", f"{url}/token", data=body(), headers=headers))
        while b'in_progress_requests{endpoint="/token"} 1' not in (await caller.ask("GET", f"{url}/metrics")).body:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        process.signal(signal.SIGTERM)
        stopped.set()
        seen = await exchange
        answered = time.monotonic()
        assert seen.status == 200, seen
        assert seen.headers["Connection"] == "close"
        assert await asyncio.to_thread(process.wait, 10)
        assert time.monotonic() - answered < 5
        assert process.exit_reason == "exit code 0"
    finally:
        part.kill()


def _children(pid: int | None) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    """Whether there is such a process, and not only its remains."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


_EVENT = 'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
_END = 'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


async def _chats(caller: Caller, port: int) -> int:
    """How many chat requests a worker's metrics tell of."""
    text = (await caller.ask("GET", f"http://{HOST}:{port}/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith('requests_total{endpoint="/v1/chat/completions"')]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if 'service_type="ai"' in line)


def _two_free_ports() -> int:
    for _ in range(100):
        port = free_port()
        try:
            with socket.socket() as probe:
                probe.bind((HOST, port + 1))
        except OSError:
            continue
        return port
    raise AssertionError("no two free ports in a row")
