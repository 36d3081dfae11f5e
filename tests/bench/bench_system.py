"""What the whole system costs from a client's side: beside asking LiteLLM alone, and in CPU time of each service.

Everything runs as it is deployed, as processes of its own; LiteLLM is the double, which answers at once.
Run alone with `python -m tests.bench.bench_system`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.system.clients import Caller, Seen
from tests.system.harness import System, make_template

ROUNDS, CALLS, AT_ONCE, EVENTS = 7, 60, 8, 400
_TICK = os.sysconf("SC_CLK_TCK")

_EVENT = 'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"token"}}]}\n\n'
_END = (
    'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    'data: {"id":"c","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":400,"total_tokens":410}}\n\n'
    "data: [DONE]\n\n"
)

Row = tuple[str, str]


async def run() -> list[Row]:
    """Rows of (name, figure)."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        os.chmod(name, 0o755)  # noqa: PTH101 - PostgreSQL runs as another user
        system = System(folder / "system", make_template(folder), environment={"LOG_LEVEL": "WARNING"})
        started = time.perf_counter()
        await system.start()
        try:
            async with Caller.open(system) as caller:
                rows = [("system: all parts ready after", f"{time.perf_counter() - started:.1f} s")]
                return rows + await _chats(caller) + await _streams(caller) + await _exchanges(caller)
        finally:
            system.stop()


async def _chats(caller: Caller) -> list[Row]:
    _, token = await caller.account()
    body = {"model": "double", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 5}
    alone = f"{caller.system.url('litellm')}/v1/chat/completions"

    async def direct() -> Seen:
        return await caller.ask("POST", alone, json=body)

    rows = await _beside(caller, "chat", direct, lambda: caller.chat(token), CALLS, "a request")
    per_second = await _rate(lambda: caller.chat(token))
    return [*rows, (f"system: chats with {AT_ONCE} at once", f"{per_second:.0f} a second")]


async def _streams(caller: Caller) -> list[Row]:
    _, token = await caller.account()
    await caller.script("slow", [*[("send", _EVENT)] * EVENTS, ("send", _END)])
    body = {"model": "slow", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    alone = f"{caller.system.url('litellm')}/v1/chat/completions"

    async def direct() -> Seen:
        return await caller.ask("POST", alone, json=body)

    async def through() -> Seen:
        seen = await caller.stream(token, model="slow")
        assert seen.done, seen
        return Seen(seen.status, seen.seconds)

    return await _beside(caller, f"stream of {EVENTS} events", direct, through, 5, "a stream")


async def _beside(
    caller: Caller,
    what: str,
    direct: Callable[[], Awaitable[Seen]],
    through: Callable[[], Awaitable[Seen]],
    calls: int,
    unit: str,
) -> list[Row]:
    """Direct and through the gateway in turns; the ratio is of each round's own pair."""
    times: dict[str, list[float]] = {"direct": [], "through": []}
    cpu: list[float] = []
    for number in range(ROUNDS + 1):
        before_cpu = _cpu(caller.system, "gateway-1")
        times["through"].append(await _time(through, calls))
        cpu.append((_cpu(caller.system, "gateway-1") - before_cpu) / calls)
        times["direct"].append(await _time(direct, calls))
        if number == 0:  # connections, caches
            cpu.clear()
            for measured in times.values():
                measured.clear()
    ratios = [a / b for a, b in zip(times["through"], times["direct"], strict=True)]
    return [
        (f"system: {what}, LiteLLM alone", _spread(times["direct"], 1e3, "ms")),
        (f"system: {what}, through the gateway", _spread(times["through"], 1e3, "ms")),
        (f"system: {what}, ratio", _spread(ratios, 1, "x")),
        (f"system: {what}, CPU of the gateway", f"{_spread(cpu, 1e3, 'ms')} {unit}"),
    ]


async def _exchanges(caller: Caller) -> list[Row]:
    token = await caller.fxa_token()
    opaque = await caller.fxa_token(kind="opaque")
    device = caller.device()
    assert (await caller.enrol(device)).status == 201
    rows = []
    for what, ask, calls in (
        ("a JWT of FxA", lambda: caller.exchange(token), CALLS),
        ("an opaque token of FxA, cached", lambda: caller.exchange(opaque), CALLS),
        ("a device (challenge and assertion)", lambda: caller.exchange_device(device), CALLS // 3),
    ):
        await _time(ask, 5)
        before = _cpu(caller.system, "auth-1")
        times = [await _time(ask, calls) for _ in range(ROUNDS)]
        cpu = (_cpu(caller.system, "auth-1") - before) / calls / ROUNDS
        rows.append((f"system: exchange of {what}", f"{_spread(times, 1e3, 'ms')}, {cpu * 1e3:.1f} ms CPU of auth"))
    return rows


async def _time(ask: Callable[[], Awaitable[Seen]], calls: int) -> float:
    """Seconds of one call, one after the other."""
    started = time.perf_counter()
    for _ in range(calls):
        assert (await ask()).status == 200
    return (time.perf_counter() - started) / calls


async def _rate(ask: Callable[[], Awaitable[Seen]]) -> float:
    started = time.perf_counter()

    async def some() -> None:
        for _ in range(CALLS):
            assert (await ask()).status == 200

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return AT_ONCE * CALLS / (time.perf_counter() - started)


def _cpu(system: System, name: str) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{system.parts[name].process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _spread(values: Sequence[float], factor: float, unit: str) -> str:
    least, middle, most = (factor * value for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.2f} {unit} ({least:.2f} to {most:.2f})"


if __name__ == "__main__":
    for row_name, figure in asyncio.run(run()):
        print(f"{row_name:60} {figure}")
