"""The TCP side of the pool to LiteLLM: small buffers, no stale connections, and a record of what was sent."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Any
from weakref import WeakSet

from aiohttp import ClientConnectorError, ClientRequest, ClientTimeout, ConnectionTimeoutError, TCPConnector
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
    """A request on its way: its body and its connection."""

    __slots__ = ("_protocol", "_transport", "body", "failed", "reused")

    def __init__(self) -> None:
        #: The request's body; released once the kernel has it, since the answer may take minutes.
        self.body = b""
        self._protocol: BaseProtocol | None = None
        self._transport: asyncio.Transport | None = None
        #: An earlier request used the same connection.
        self.reused = False
        #: The connection was lost while the request was given to the kernel: it does not have all of it.
        self.failed = False

    def take(self, protocol: BaseProtocol, transport: asyncio.Transport, *, reused: bool) -> None:
        """The request is written to this connection next."""
        self._protocol, self._transport, self.reused, self.failed = protocol, transport, reused, False
        transport.set_write_buffer_limits(high=0)  # "not paused" then means "the kernel has all of it"

    @property
    def used(self) -> bool:
        """Whether bytes of the request may have gone out."""
        return self._protocol is not None

    @property
    def written(self) -> bool:
        """Whether the kernel has taken all bytes of the request. This remains so when the connection is lost."""
        return self._protocol is not None and not self._protocol.writing_paused and not self.failed

    def cut(self) -> None:
        """Close the connection now, discarding unwritten data."""
        if self._transport is not None:
            self._transport.abort()


class Connector(TCPConnector):
    """A pool that never hands out a connection that the other side has closed, or still sends to.

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
        """A connection for a session, such as a health check's, which a paid request may be next to use."""
        return (await self._connect(req, traces, timeout))[0]

    async def lend(self, req: ClientRequest, timeout: ClientTimeout, wire: Wire) -> Connection:
        """A connection for a paid request, which the caller writes at once.

        :raises aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError: there is none.
        """
        try:
            connection, kept = await self._connect(req, [], timeout)
        except TimeoutError as error:
            raise ConnectionTimeoutError from error
        protocol = connection.protocol
        assert protocol is not None
        assert protocol.transport is not None
        wire.take(protocol, protocol.transport, reused=kept)
        return connection

    async def _connect(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> tuple[Connection, bool]:
        """A connection that is open as far as this host knows, and on which nothing waits to be read; and whether it
        has had a request before.

        :raises aiohttp.ClientConnectorError: as ``lend``; also if the other side closes a new one at once.
        """
        while True:
            connection = await super().connect(req, traces, timeout)
            kept = connection.protocol in self._known
            if _usable(connection, kept=kept):
                if not kept and connection.protocol is not None:
                    self._known.add(connection.protocol)
                return connection, kept
            connection.close()
            if not kept:
                raise ClientConnectorError(req.connection_key, ConnectionResetError("it was closed at once"))


def _usable(connection: Connection, *, kept: bool) -> bool:
    """Whether a connection is open, also for the kernel, and a kept one has nothing that would pass for an answer."""
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None or transport.is_closing() or (kept and protocol.should_close):
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP | (select.POLLIN if kept else 0))
    return not poll.poll(0)


def _make_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    return sock
