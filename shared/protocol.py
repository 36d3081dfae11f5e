"""aiohttp's server protocol, with what it says about malformed requests in the service's own shape.

aiohttp answers bytes that are no HTTP in plain text, and logs the bytes, which may hold a credential.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy

from shared.web import Frame

RequestFactory = Callable[..., web.BaseRequest]


class Protocol(web.RequestHandler):
    """One connection of a service."""

    __slots__ = ("_frame",)

    def __init__(self, server: web.Server, frame: Frame, **options: Any) -> None:
        super().__init__(server, **options)
        self._frame = frame

    @property
    def busy(self) -> bool:
        """Whether a request runs, from its head to the last byte of its answer."""
        return self._request_in_progress

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Not for a body that turns out to be damaged after the answer: anybody could fill the log with it."""
        if not isinstance(options.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **options)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("a response has begun, so that no other can be sent")
        response = self._frame.unreadable(exc if isinstance(exc, HttpProcessingError) else None)
        response.force_close()
        return response


class ServiceSite(web.SockSite):
    """A listening socket whose connections speak ``Protocol``, or a kind of it.

    :param options: of aiohttp's RequestHandler (``max_field_size``, ``read_bufsize``...).
    """

    __slots__ = ("_frame", "_options", "_protocol")

    def __init__(
        self,
        runner: web.BaseRunner,
        sock: socket.socket,
        frame: Frame,
        *,
        protocol: type[Protocol] = Protocol,
        **options: Any,
    ) -> None:
        super().__init__(runner, sock, backlog=4096)
        self._frame = frame
        self._protocol = protocol
        self._options = {"access_log": None, "keepalive_timeout": 75.0, **options}

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
    """An ``Expect`` other than ``100-continue`` is not seen (RFC 9110 section 10.1.1 allows that).

    aiohttp would refuse it in plain text, quoting it, before any of our code runs.
    """

    def made(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        if "Expect" in message.headers:  # which are a plain dict when the request could not be read
            headers = message.headers.copy()
            if [value.lower() for value in headers.popall("Expect")] != ["100-continue"]:
                message = message._replace(headers=CIMultiDictProxy(headers))
        return make(message, *rest)

    return made
