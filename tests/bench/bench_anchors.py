"""The gateway beside what one would run instead: LiteLLM alone, and a Node gateway from npm; in the rig of bench_relay.

Neither holds budgets or keeps a ledger here. npm installs the second into ``build/``. What is not there, fails or takes
too long is not measured; the others are.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median

from services.local import litellm
from services.local.process import free_port
from tests.bench.bench_relay import Other, Relay, bursts, rig, whole_answers
from tests.bench.figures import Row, spread, turns

ROUNDS = 3
PATIENCE = 60.0  # seconds of a relay in a round
NODE_GATEWAY = "@portkey-ai/gateway@1.15.2"
MODELS = ("plain", "burst-100")
KEY = "sk-bench"
#: Gives an answer headers that can be changed, as this gateway expects: those of Node 20's fetch can't be.
_SHIM = (
    "data:text/javascript,const f=globalThis.fetch;globalThis.fetch=async(...a)=>{const r=await f(...a);"
    "return new Response(r.body,{status:r.status,headers:new Headers(r.headers)})}"
)


async def run() -> list[Row]:
    """Rows of (name, figure)."""
    rows: list[Row] = []
    async with rig(_litellm, _node) as relays:
        for name, work in (("of a request, 32 at once", _request), ("of an event, 32 bursts of 100 at once", _event)):
            measured = await turns(*(partial(_tried, work, relay) for relay in relays), rounds=ROUNDS, warm_up=1)
            bare = median(measured[1])
            for relay, each in zip(relays, measured, strict=True):
                figure = "not measured"
                if all(each):
                    figure = f"{spread(each, 'us', 1e6)}; {median(each) / bare:.1f}x the bare relay"
                rows.append((f"CPU {name}, {relay.name}", figure))
        rows += [(f"RSS, {relay.name}", f"{relay.ps.memory_info().rss / 2**20:.0f} MiB") for relay in relays]
    return rows


async def _tried(work: Callable[[Relay], Awaitable[float]], relay: Relay) -> float:
    """The figure, or 0 if there is none."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await work(relay)
    except (OSError, EOFError, TimeoutError, RuntimeError) as error:
        print(f"{relay.name}: {error!r}", file=sys.stderr)
        return 0.0


async def _request(relay: Relay) -> float:
    _, cpu, errors = await whole_answers(relay)
    _expect_none(relay, errors)
    return cpu


async def _event(relay: Relay) -> float:
    cpu, load = await bursts(relay, times=1)
    _expect_none(relay, load.errors)
    return cpu


def _expect_none(relay: Relay, errors: int) -> None:
    if errors:
        raise RuntimeError(f"{relay.name}: {errors} errors")


def _litellm(folder: Path, upstream: str) -> Other | None:
    environment = litellm.environment(folder)
    if not litellm.installed(environment):
        return None
    to = {"api_base": f"{upstream}/v1", "api_key": "none"}
    models = [{"model_name": name, "litellm_params": {"model": f"openai/{name}", **to}} for name in MODELS]
    config = folder / "anchor.yaml"
    config.write_text(json.dumps({"model_list": models, "litellm_settings": {"telemetry": False}}))
    server = litellm.LiteLLMServer(folder / "litellm", free_port(), master_key=KEY, config=config)
    server.initialise()
    return Other("LiteLLM alone", server.port, KEY, server.process.program.argv, server.process.program.env)


def _node(_folder: Path, upstream: str) -> Other | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    home = litellm.CHECKOUT / "build" / "node-gateway"
    script = home / "node_modules/@portkey-ai/gateway/build/start-server.js"
    if node is None or npm is None:
        return None
    if not script.exists():
        home.mkdir(parents=True, exist_ok=True)
        install = [npm, "install", "--prefix", str(home), "--no-audit", "--no-fund", "--ignore-scripts", NODE_GATEWAY]
        try:
            subprocess.run(install, stdout=sys.stderr, check=True, timeout=PATIENCE)
        except subprocess.SubprocessError:
            return None
    port = free_port()
    argv = (node, "--import", _SHIM, str(script), f"--port={port}", "--headless")
    fields = f"x-portkey-provider: openai\r\nx-portkey-custom-host: {upstream}/v1\r\n"
    return Other("a Node gateway", port, KEY, argv, fields=fields)
