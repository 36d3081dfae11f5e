"""The cost of the whole system for a client, beside LiteLLM alone, and in CPU time of each service.

Everything runs as it is deployed, as processes of its own; LiteLLM is the double, which answers at once.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from tests.bench.figures import ROUNDS, Row, beside, spread, turns
from tests.system.clients import Caller, Seen
from tests.system.harness import System, make_template

CALLS, AT_ONCE, EVENTS = 60, 8, 400
_TICK = os.sysconf("SC_CLK_TCK")

_EVENT = 'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"token"}}]}\n\n'
_END = (
    'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    'data: {"id":"c","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":400,"total_tokens":410}}\n\n'
    "data: [DONE]\n\n"
)


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
                rows = [("all parts ready after, once", f"{time.perf_counter() - started:.1f} s")]
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
    rates = [await _rate(lambda: caller.chat(token)) for _ in range(ROUNDS)]
    return [*rows, (f"chats with {AT_ONCE} at once", spread(rates, "a second"))]


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

    return await _beside(caller, f"stream of {EVENTS} events", direct, through, 20, "a stream")


async def _beside(
    caller: Caller,
    what: str,
    direct: Callable[[], Awaitable[Seen]],
    through: Callable[[], Awaitable[Seen]],
    calls: int,
    unit: str,
) -> list[Row]:
    """Through the gateway and direct, in turns; the first round opens connections and fills caches."""
    measure = partial(_measure, caller.system, "gateway-1", calls=calls)
    mine, alone = await turns(partial(measure, through), partial(measure, direct), warm_up=1)
    figure = beside([seconds for seconds, _ in mine], [seconds for seconds, _ in alone], "ms", 1e3)
    return [
        (f"{what}, beside the double alone", figure),
        (f"{what}, CPU of the gateway", spread([cpu for _, cpu in mine], f"ms {unit}", 1e3)),
    ]


async def _exchanges(caller: Caller) -> list[Row]:
    token = await caller.fxa_token()
    opaque = await caller.fxa_token(kind="opaque")
    device = await caller.enrolled()
    rows = []
    for what, ask, calls in (
        ("a JWT of FxA", lambda: caller.exchange(token), CALLS),
        ("an opaque token of FxA, cached", lambda: caller.exchange(opaque), CALLS),
        ("a device (challenge and assertion)", lambda: caller.exchange_device(device), CALLS // 3),
    ):
        (measured,) = await turns(partial(_measure, caller.system, "auth-1", ask, calls=calls), warm_up=1)
        times, cpu = zip(*measured, strict=True)
        rows.append((f"exchange of {what}", f"{spread(times, 'ms', 1e3)}; {spread(cpu, 'ms CPU of auth', 1e3)}"))
    return rows


async def _measure(system: System, part: str, ask: Callable[[], Awaitable[Seen]], *, calls: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of a part of the system, of one call, one after the other."""
    before, started = _cpu(system, part), time.perf_counter()
    for _ in range(calls):
        assert (await ask()).status == 200
    return (time.perf_counter() - started) / calls, (_cpu(system, part) - before) / calls


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
