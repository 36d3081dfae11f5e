"""A TCP proxy that a test puts before a part, to make it slow or unreachable without touching the part itself."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import Self, cast

from services.local.process import free_port


class Gate:
    """Passes bytes between ``port`` and ``target``; ``async with`` it.

    ``latency``: seconds that each chunk of the part's answers is held back: a stream is delayed, not thinned out.
    """

    def __init__(self, target: int, port: int | None = None) -> None:
        self.port = port or free_port()
        self.target = target
        self.latency = 0.0
        self._server: asyncio.Server | None = None
        self._sides: set[_Side] = set()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def accept(self) -> None:
        """Listen again."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _Client(self), "127.0.0.1", self.port)

    async def refuse(self) -> None:
        """As a host that is up and has nobody on the port: what was open is reset, too."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for side in list(self._sides):
            side.reset()

    def opened(self, side: _Side) -> None:
        self._sides.add(side)

    def closed(self, side: _Side) -> None:
        self._sides.discard(side)


class _Side(asyncio.Protocol):
    """One end of a connection. What it reads goes to ``peer``, in order and not before its time."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.peer: _Side | None = None
        self.transport: asyncio.Transport | None = None
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.gate.opened(self)

    def data_received(self, data: bytes) -> None:
        self._put(data)

    def eof_received(self) -> bool:
        self._put(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.gate.closed(self)
        if self.peer is not None and exc is not None:
            self.peer.reset()
        else:
            self._put(None)

    def latency(self) -> float:
        return 0.0

    def reset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.transport is not None and not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def flush(self) -> None:
        """Hand on what is due."""
        self._timer = None
        while self._queue and self.peer is not None and self.peer.transport is not None:
            due, data = self._queue[0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self.flush)
                return
            self._queue.popleft()
            transport = self.peer.transport
            if transport.is_closing():
                continue
            if data is not None:
                transport.write(data)
            else:
                with suppress(OSError):  # it is closed already
                    transport.write_eof()
                if self.transport is None or self.transport.is_closing():
                    transport.close()

    def _put(self, data: bytes | None) -> None:
        self._queue.append((self._loop.time() + self.latency(), data))
        if self._timer is None:
            self.flush()


class _Part(_Side):
    def latency(self) -> float:
        return self.gate.latency


class _Client(_Side):
    def __init__(self, gate: Gate) -> None:
        super().__init__(gate)
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        part = _Part(self.gate)
        try:
            await self._loop.create_connection(lambda: part, "127.0.0.1", self.gate.target)
        except OSError:
            self.reset()
            return
        self.peer, part.peer = part, self
        self.flush()
        part.flush()
