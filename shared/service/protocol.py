"""aiohttp's server protocol, with bounds on what a client can make it hold, and refusals in the service's shape.

aiohttp bounds each line of a head, but neither the head as a whole nor its time; it inflates compressed bodies before
they are read; it answers bytes that are not HTTP in plain text, and logs the bytes, which may hold a
credential.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo
from multidict import CIMultiDictProxy

from shared.errors import BadRequest, HeadTooLarge, HeadTooLate, ServiceError
from shared.service.web import Frame

RequestFactory = Callable[..., web.BaseRequest]

#: Bytes of a request's head: its line and its fields.
MAX_HEAD = 16 * 1024
#: Seconds from the first byte of a head to its last.
HEAD_SECONDS = 10.0
#: Bytes discarded at most after a refusal, so that the client can read it before the connection ends.
MAX_THROWN_AWAY = 1024 * 1024
#: Seconds that a refused connection stays half open for the same reason.
LINGER_SECONDS = 2.0
#: aiohttp's message for too many header fields, which have no exception class.
_TOO_MANY_FIELDS = "Too many headers"
#: Bytes around a field on the wire: a colon, a space, and the end of the line.
_AROUND_FIELD = 4


class _Refused(Exception):
    """The reason to stop reading a connection, as aiohttp passes it to ``handle_error``."""

    def __init__(self, error: ServiceError, reason: str) -> None:
        super().__init__(reason)
        self.error, self.reason = error, reason


class Protocol(web.RequestHandler):
    """One connection of a service.

    Bytes that come without completing a head or adding to a body (the lines of a head, the trailers of a body) are
    counted, and bounded by ``max_head``; after a refusal nothing more is parsed.
    """

    __slots__ = (
        *("_allowance", "_frame", "_head_seconds", "_head_timer", "_max_head", "_max_thrown_away"),
        *("_payload", "_progress", "_refused", "_silent"),
    )

    def __init__(
        self,
        server: web.Server,
        frame: Frame,
        *,
        max_head: int,
        max_body: int,
        head_seconds: float = HEAD_SECONDS,
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self._frame, self._head_seconds, self._max_head = frame, head_seconds, max_head
        self._max_thrown_away = max(max_body, MAX_THROWN_AWAY)
        #: The body of the newest request.
        self._payload: StreamReader = EMPTY_PAYLOAD
        self._progress = (0, 0, True)
        self._silent = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused = False
        #: Bytes that may still be thrown away, once the newest request has been answered.
        self._allowance: int | None = None

    @property
    def busy(self) -> bool:
        """Whether a request runs, from its head to the last byte of its answer."""
        return self._request_in_progress

    def data_received(self, data: bytes) -> None:
        self._parse(data)
        while self._upgraded and not self._refused:
            # No service changes the protocol: the next bytes are the next request, within the same bounds
            tail, self._message_tail, self._upgraded = self._message_tail, b"", False
            if self._parser is not None:
                self._parser.set_upgraded(False)
            if tail:
                self._parse(tail)

    def _parse(self, data: bytes) -> None:
        if self._refused:
            self._throw_away(len(data))
            return
        known = self._request_count
        super().data_received(data)
        if self._request_count != known:
            small = data and self._silent + len(data) <= self._max_head  # no data: the request came earlier
            self._check_heads(self._request_count - known, small=bool(small))
        elif self._allowance is not None and not self._payload.is_eof():
            self._throw_away(len(data))
        payload = self._payload
        progress = (self._request_count, payload.total_bytes, payload.is_eof())
        if progress != self._progress:
            self._progress = progress
            self._silent = 0
            self._stop_timer()
        elif data and not self._refused:
            self._silent += len(data)
            if self._silent > self._max_head:
                self._refuse(_Refused(HeadTooLarge(), "head too large"))
            elif self._head_timer is None and payload.is_eof():
                self._head_timer = self._loop.call_later(self._head_seconds, self._late)

    def _check_heads(self, count: int, *, small: bool) -> None:
        """Look at the ``count`` requests that have just been parsed.

        :param small: they came in fewer bytes than a head may have.
        """
        self._allowance = None
        new = [self._messages.pop() for _ in range(count)][::-1]
        for message, payload in new:
            if isinstance(message, _ErrInfo):  # which holds the bytes at fault, several times
                self._refuse(_why(message.exc))
                return
            if not small and _head_size(message) > self._max_head:
                self._refuse(_Refused(HeadTooLarge(), "head too large"))
                return
            self._messages.append((message, payload))
            self._payload = payload

    def _refuse(self, why: _Refused) -> None:
        """Answer an error after the earlier requests are answered, and read nothing more."""
        self._refused = True
        self._lingering_time = LINGER_SECONDS
        self._stop_timer()
        if not self._payload.is_eof():  # end a request that still waits for its body
            self._payload.set_exception(web.RequestPayloadError(why.reason))
        self._payload = StreamReader(self, 1, loop=self._loop)  # never complete, so that aiohttp lingers
        self._messages.append((_ErrInfo(status=why.error.status, exc=why, message=""), self._payload))
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _throw_away(self, size: int) -> None:
        if self._allowance is None:
            self._allowance = self._max_thrown_away
        self._allowance -= size
        if self._allowance < 0:
            if self.busy:
                self.force_close()
            else:
                self._refused = True
                self._payload.feed_eof()
                self.close()

    def _late(self) -> None:
        self._head_timer = None
        if self.busy:  # a request that is sent ahead of its turn has until then
            self._head_timer = self._loop.call_later(self._head_seconds, self._late)
        else:
            self._refuse(_Refused(HeadTooLate(), "head too late"))

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    async def finish_response(self, request: web.BaseRequest, *args: Any) -> tuple[web.StreamResponse, bool]:
        finished = await super().finish_response(request, *args)
        if request.content is self._payload:
            self._allowance = self._max_thrown_away
        if self._refused and not self._messages and self.transport is not None:
            with suppress(OSError, RuntimeError):  # the client has left meanwhile
                self.transport.write_eof()
        return finished

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Log nothing about a body that turns out to be damaged after the answer: anybody could fill the log so."""
        if not isinstance(options.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **options)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("a response has begun, so that no other can be sent")
        if isinstance(exc, _Refused):
            response = self._frame.unreadable(exc.error, exc.reason)
        else:
            response = self._frame.unreadable(ServiceError(), type(exc).__name__)
        response.force_close()
        return response


def _why(fault: BaseException) -> _Refused:
    """The parser's reason, in our words."""
    reason = type(fault).__name__
    if isinstance(fault, LineTooLong) or (
        isinstance(fault, HttpProcessingError) and fault.message.startswith(_TOO_MANY_FIELDS)
    ):
        return _Refused(HeadTooLarge(), reason)
    return _Refused(BadRequest("The bytes are not a well-formed HTTP request."), reason)


def _head_size(message: RawRequestMessage | _ErrInfo) -> int:
    if isinstance(message, _ErrInfo):
        return 0
    fields = sum(len(name) + len(value) + _AROUND_FIELD for name, value in message.raw_headers)
    return len(message.method) + len(message.path) + len("  HTTP/1.1\r\n\r\n") + fields


class ServiceSite(web.SockSite):
    """A listening socket whose connections speak ``Protocol``, or a kind of it.

    :param max_body: bytes of a request's body; the apps hold it, and so much is thrown away after a refusal.
    :param max_head: bytes of a request's line and fields.
    :param max_field: bytes of one field, its name included.
    :param options: of ``Protocol`` or aiohttp's RequestHandler (``head_seconds``, ``read_bufsize``...).
    """

    __slots__ = ("_frame", "_options", "_protocol")

    def __init__(
        self,
        runner: web.BaseRunner,
        sock: socket.socket,
        frame: Frame,
        *,
        max_body: int = MAX_THROWN_AWAY,
        max_head: int = MAX_HEAD,
        max_field: int = MAX_HEAD,
        protocol: type[Protocol] = Protocol,
        **options: Any,
    ) -> None:
        super().__init__(runner, sock, backlog=4096)
        self._frame, self._protocol = frame, protocol
        self._options = {
            "access_log": None,
            "keepalive_timeout": 75.0,
            "auto_decompress": False,
            "max_line_size": max_head,
            "max_field_size": max_field,
            "max_head": max_head,
            "max_body": max_body,
            **options,
        }

    async def start(self) -> None:
        await web.BaseSite.start(self)
        loop = asyncio.get_running_loop()
        server = self._runner.server
        assert server is not None
        server.request_factory = _without_unknown_expectations(server.request_factory)

        def connect() -> Protocol:
            return self._protocol(server, self._frame, loop=loop, **self._options)

        self._server = await loop.create_server(connect, sock=self._sock, backlog=self._backlog)


def _without_unknown_expectations(make: RequestFactory) -> RequestFactory:
    """Ignore an ``Expect`` other than ``100-continue`` (RFC 9110 section 10.1.1 allows that).

    aiohttp would refuse it in plain text, quoting it, before any of our code runs.
    """

    def made(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        if "Expect" in message.headers:  # which are a plain dict when the request could not be read
            headers = message.headers.copy()
            if [value.lower() for value in headers.popall("Expect")] != ["100-continue"]:
                message = message._replace(headers=CIMultiDictProxy(headers))
        return make(message, *rest)

    return made
