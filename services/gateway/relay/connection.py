"""The client's side of a connection, which notices at once that a client has left, whatever else it sent.

aiohttp stops reading from a connection when a pipelined second body fills its buffers, and a close is then not seen;
and it flushes data that a closed client will never take. Here reading continues while a response runs: a client may
send a little ahead, and one that sends more is cut off. A close ends the response.
"""

from __future__ import annotations

import socket
from itertools import islice

from aiohttp import web

from shared.service.protocol import Protocol, ServiceSite
from shared.service.web import Frame

#: Bytes that the kernel buffers for a client; the rest waits at LiteLLM.
SEND_BUFFER = 128 * 1024
#: Bytes of further requests that a client may send before the answer to its request has ended.
READ_AHEAD = 64 * 1024
#: Half of the buffer of a body that is not read yet.
_READ_BUFFER = 64 * 1024


class RelayProtocol(Protocol):
    """aiohttp's server protocol, which here never pauses reading while a response runs."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages and self._ahead() > READ_AHEAD:
            self._abort()

    def _ahead(self) -> int:
        """Bytes of bodies that arrived after the current request."""
        first = 0 if self._current_request is not None else 1
        return sum(payload.total_bytes for _, payload in islice(self._messages, first, None))

    def _answering(self) -> bool:
        """Whether a handler is running whose request has arrived completely."""
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
