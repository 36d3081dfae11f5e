"""The client's side of a connection: that a client has left is seen at once, whatever else it sent.

aiohttp stops reading from a connection when a pipelined second body fills its buffers, and a close is then not seen;
and it flushes what a client that has closed will never take. Here, while a response runs, reading goes on: a client
may send a little ahead, and one that sends more is cut off. A close ends the response.
"""

from __future__ import annotations

import socket
from itertools import islice

from aiohttp import web

from shared.protocol import Protocol, ServiceSite
from shared.web import Frame

#: Bytes that the kernel buffers for a client: what is more waits at LiteLLM.
SEND_BUFFER = 128 * 1024
#: Bytes of further requests that a client may send before the answer to its request has ended.
READ_AHEAD = 64 * 1024
#: Half of what is buffered of a body that nobody reads yet.
_READ_BUFFER = 64 * 1024


class RelayProtocol(Protocol):
    """aiohttp's server protocol, that never pauses reading while a response runs."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages and self._ahead() > READ_AHEAD:
            self._abort()

    def _ahead(self) -> int:
        """Bytes of bodies that came after the request that is being answered, or is about to be."""
        first = 0 if self._current_request is not None else 1
        return sum(payload.total_bytes for _, payload in islice(self._messages, first, None))

    def _answering(self) -> bool:
        """Whether a handler runs that has all of its request."""
        request = self._current_request
        return request is not None and request.content.is_eof()

    def pause_reading(self) -> None:
        if self._answering():
            self._abort()
        else:
            super().pause_reading()

    def _pause_reading_for_buffer(self) -> None:
        if self._answering():
            self._abort()
        else:
            super()._pause_reading_for_buffer()

    def eof_received(self) -> None:
        if self._current_request is not None:
            self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class RelaySite(ServiceSite):
    """A listening socket whose connections speak ``RelayProtocol``."""

    __slots__ = ()

    def __init__(self, runner: web.BaseRunner, sock: socket.socket, frame: Frame, *, max_body: int) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # accepted sockets inherit it
        super().__init__(runner, sock, frame, max_body=max_body, protocol=RelayProtocol, read_bufsize=_READ_BUFFER)
