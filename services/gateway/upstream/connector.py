"""The TCP side of the pool to LiteLLM: small buffers, no stale connections, and a record of what was sent."""

from __future__ import annotations

import asyncio
import select
import socket
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from aiohttp import BytesPayload, ClientRequest, ClientTimeout, TCPConnector
from aiohttp.abc import AbstractStreamWriter
from aiohttp.base_protocol import BaseProtocol
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

#: Bytes that the kernel buffers of a response; the rest waits at LiteLLM, so that a slow client costs little.
RECEIVE_BUFFER = 64 * 1024
#: Bytes that the kernel buffers of a request; the rest has certainly not reached LiteLLM.
SEND_BUFFER = 64 * 1024
#: Milliseconds that sent data may stay unacknowledged before LiteLLM's host counts as lost.
USER_TIMEOUT_MS = 30_000


class Wire:
    """The state of one request's connection."""

    __slots__ = ("reused", "transport", "used", "written")

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        #: Bytes of the request may have gone out.
        self.used = False
        #: An earlier request used the same connection.
        self.reused = False
        #: The kernel has all bytes of the request.
        self.written = False

    def cut(self) -> None:
        """Close the connection now, discarding unwritten data."""
        if self.transport is not None:
            self.transport.abort()


#: The wire of this task's request.
wire: ContextVar[Wire] = ContextVar("wire")


class Connector(TCPConnector):
    """A pool that never hands out a connection that the other side has closed.

    :param keepalive: seconds that an idle connection is kept; None to keep none.
    """

    def __init__(self, *, keepalive: float | None) -> None:
        super().__init__(
            limit=0,  # open requests are limited where they arrive
            ttl_dns_cache=30,
            socket_factory=_make_socket,
            **({"force_close": True} if keepalive is None else {"keepalive_timeout": keepalive}),
        )
        self._known = WeakSet[BaseProtocol]()

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> Connection:
        """A connection that is open as far as this host knows. The caller writes the request at once."""
        while True:
            connection = await super().connect(req, traces, timeout)
            if not _stale(connection):
                break
            connection.close()
        used = wire.get(None)
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None:
            return connection
        reused = protocol in self._known
        self._known.add(protocol)  # also for a health check, whose connection a chat may be next to use
        if used is not None:
            used.transport = transport
            used.used = True
            used.reused = reused
            transport.set_write_buffer_limits(high=0)  # "drained" then means "the kernel has all of it"
        return connection


class Body(BytesPayload):
    """A request's body, released once the kernel has all of it: the answer may take minutes."""

    def __init__(self, body: bytes, wire: Wire) -> None:
        super().__init__(body, content_type="application/json")
        self._wire = wire

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await super().write_with_length(writer, content_length)
        await writer.drain()
        self._wire.written = True
        self._value = b""


def _stale(connection: Connection) -> bool:
    """Whether the other side has closed a connection without the loop having noticed."""
    transport = connection.transport
    if transport is None or transport.is_closing():
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def _make_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    return sock
