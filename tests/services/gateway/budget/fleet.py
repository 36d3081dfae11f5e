"""Several gateway processes (``worker.py``) in front of an upstream that counts its deliveries."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from tests.services.gateway.budget.support import MODEL

PROMPT_NANO, COMPLETION_NANO = MODEL.input_units, MODEL.output_units


@dataclass
class Upstream:
    """Streams one-byte tokens, and usage at the end; cuts a share of the streams short.

    A token counts as delivered when the gateway says that it has it: what was still in a socket, nobody got.
    """

    pace: float = 0.002
    cut: float = 0.0
    port: int = 0
    delivered: dict[str, int] = field(default_factory=dict)
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    def cost(self, request: str) -> int:
        return self.delivered[request]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # From Python 3.12.1 on, the server ends only when all its connections are closed
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.CancelledError):
            line = await reader.readline()
            if not line:
                return
            request = json.loads(line)
            tokens = self._random.randint(request["grant"] // 3, request["grant"])
            cut_at = self._random.randint(0, tokens) if self._random.random() < self.cut else None
            cost = request["prompt"] * PROMPT_NANO
            self.delivered[request["id"]] = cost
            for sent in range(tokens):
                if sent == cut_at:
                    return
                writer.write(b"t\n")
                if not await reader.readline():
                    return
                cost += COMPLETION_NANO
                self.delivered[request["id"]] = cost
                await asyncio.sleep(self.pace)
            writer.write(f"usage {request['prompt']} {tokens}\n".encode())
            await writer.drain()


class Gateway:
    """One worker process."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def result(self) -> dict[str, int]:
        """What its clients saw; empty when it was killed."""
        assert self.process.stdout is not None
        text = await self.process.stdout.read()
        await self.process.wait()
        return json.loads(text) if text else {}

    async def stop(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.result(), 20)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            raise


class Fleet:
    """Starts gateways, and leaves none behind."""

    def __init__(self, **config: Any) -> None:
        self.config = config
        self.gateways: list[Gateway] = []
        self._seeds = itertools.count()

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for gateway in self.gateways:
            if gateway.process.returncode is None:
                gateway.signal(signal.SIGKILL)
                await gateway.process.wait()

    async def start(self, *, begin: bool = True, **changes: Any) -> Gateway:
        """One more gateway; ``begin`` False leaves its clients waiting for ``Gateway.begin``."""
        config = {**self.config, "seed": next(self._seeds), **changes}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.services.gateway.budget.worker", json.dumps(config), stdin=PIPE, stdout=PIPE
        )
        gateway = Gateway(process)
        self.gateways.append(gateway)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        if begin:
            gateway.begin()
        return gateway

    async def start_many(self, count: int, **changes: Any) -> list[Gateway]:
        """Gateways whose clients begin together."""
        gateways = await asyncio.gather(*(self.start(begin=False, **changes) for _ in range(count)))
        for gateway in gateways:
            gateway.begin()
        return gateways
