"""A stand-in for the balancer before a deployment: it follows readiness, and asks another replica once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.system.clients import Caller, Seen, SeenStream
from tests.system.harness import HOST, System

#: Seconds between two looks at a replica's readiness.
LOOK = 0.2
#: A connection that ended before any byte of a response.
_CLOSED = ("ServerDisconnectedError", "ClientOSError", "ClientConnectorError", "ConnectionResetError")


class Replicas:
    """The replicas of one service, and which of them are ready."""

    def __init__(self, system: System, names: Sequence[str]) -> None:
        self._system, self._names = system, names
        self._ready = set(names)
        self._turn = 0

    def pick(self, other_than: str = "") -> str:
        ready = [name for name in self._names if name in self._ready and name != other_than] or list(self._names)
        self._turn += 1
        return ready[self._turn % len(ready)]

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Keeps looking at all of them."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            tasks = [asyncio.create_task(self._follow(session, name)) for name in self._names]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, session: aiohttp.ClientSession, name: str) -> None:
        while True:
            ready = False
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with session.get(f"{self._system.url(name)}/health/readiness") as response:
                    ready = response.status == 200
            (self._ready.add if ready else self._ready.discard)(name)
            await asyncio.sleep(LOOK)


class Front:
    """The address that all auths have together: each connection goes to one that is ready."""

    def __init__(self, replicas: Replicas, system: System, port: int) -> None:
        self._replicas, self._system, self._port = replicas, system, port

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._pass, HOST, self._port)
        async with server:
            yield

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its answer: for key sets and metadata that is all that there is."""
        try:
            port = self._system.listens[self._replicas.pick()]
            upstream_reader, upstream = await asyncio.open_connection(HOST, port)
            head = await reader.readuntil(b"\r\n\r\n")
            upstream.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            writer.write(await upstream_reader.read())
            upstream.close()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class BalancedCaller(Caller):
    """A client that reaches the services through the balancer. ``retries`` counts repeated requests."""

    def __init__(self, system: System, session: aiohttp.ClientSession) -> None:
        super().__init__(system, session)
        self.auths = Replicas(system, system.auths)
        self.gateways = Replicas(system, system.gateways)
        self.retries = 0

    @asynccontextmanager
    async def following(self, front_port: int) -> AsyncIterator[None]:
        front = Front(self.auths, self.system, front_port)
        async with self.auths.followed(), self.gateways.followed(), front.serving():
            yield

    async def ask(self, method: str, url: str, **options: Any) -> Seen:
        for replicas, names in ((self.auths, self.system.auths), (self.gateways, self.system.gateways)):
            base = self.system.url(names[0])
            if url.startswith(base):
                first = replicas.pick()
                seen = await super().ask(method, self.system.url(first) + url.removeprefix(base), **options)
                if seen.status or seen.fault not in _CLOSED:
                    return seen
                self.retries += 1
                second = replicas.pick(first)
                return await super().ask(method, self.system.url(second) + url.removeprefix(base), **options)
        return await super().ask(method, url, **options)

    async def stream(
        self, token: str, seen: SeenStream | None = None, *, model: str = "double", gateway: str | None = None
    ) -> SeenStream:
        first = gateway or self.gateways.pick()
        done = await super().stream(token, seen, model=model, gateway=first)
        if done.status or done.fault not in _CLOSED:
            return done
        self.retries += 1
        done.fault = ""
        return await super().stream(token, done, model=model, gateway=self.gateways.pick(first))
