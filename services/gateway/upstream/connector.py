"""The TCP side of the pool to LiteLLM: small buffers, no request over a stale connection, what was sent is known."""

from __future__ import annotations

import asyncio
import select
import socket
from contextvars import ContextVar
from typing import Any

from aiohttp import ClientRequest, ClientTimeout, TCPConnector
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

#: Bytes that the kernel buffers of a response: what is more waits at LiteLLM, so that a slow client costs little.
RECEIVE_BUFFER = 64 * 1024
#: How long sent data may stay unacknowledged before LiteLLM's host counts as gone, in milliseconds.
USER_TIMEOUT_MS = 30_000


class Wire:
    """What one request knows of its connection. ``used``: its bytes may have gone out."""

    __slots__ = ("transport", "used")

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.used = False

    def cut(self) -> None:
        """Close the connection now, whatever is still to be written to it."""
        if self.transport is not None:
            self.transport.abort()


#: The wire of the request that this task is making.
wire: ContextVar[Wire] = ContextVar("wire")


class Connector(TCPConnector):
    """A pool that never hands out a connection which the other side has closed."""

    def __init__(self, *, keepalive: float) -> None:
        super().__init__(
            limit=0,  # open requests are limited where they come in
            keepalive_timeout=keepalive,
            ttl_dns_cache=30,
            socket_factory=_make_socket,
        )

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> Connection:
        """A connection that is open as far as this host knows. The request is written to it as soon as this returns."""
        while True:
            connection = await super().connect(req, traces, timeout)
            if not _stale(connection):
                break
            connection.close()
        used = wire.get(None)
        if used is not None:
            used.transport = connection.transport
            used.used = True
        return connection


def _stale(connection: Connection) -> bool:
    """Whether the other side closed a connection, and the loop has yet to see it."""
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
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    return sock
