"""The client's side of a connection: that a client has left is seen at once, whatever else it sent.

aiohttp stops reading from a connection when a pipelined second body fills its buffers, and a close is then not seen;
and it flushes what a client that has closed will never take. Here, while a response runs, reading goes on: a client
may send ahead as much as one body may be; one that sends more is cut off. A close ends the response.
"""

from __future__ import annotations

import socket

from aiohttp import web

from shared.protocol import Protocol, ServiceSite
from shared.web import Frame

#: Bytes that the kernel buffers for a client: what is more waits at LiteLLM.
SEND_BUFFER = 128 * 1024


class RelayProtocol(Protocol):
    """aiohttp's server protocol, that never pauses reading while a response runs."""

    __slots__ = ()

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
    """A listening socket whose connections speak ``RelayProtocol``.

    :param max_body: bytes of a request body; so much may be sent ahead while a response runs.
    """

    __slots__ = ()

    def __init__(self, runner: web.BaseRunner, sock: socket.socket, frame: Frame, *, max_body: int) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # accepted sockets inherit it
        # reading pauses at twice the buffer's size
        super().__init__(runner, sock, frame, max_body=max_body, protocol=RelayProtocol, read_bufsize=max_body // 2)
