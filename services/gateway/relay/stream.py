"""A stream of events from LiteLLM to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import HttpVersion11, web

from services.gateway.dialects import Dialect
from services.gateway.errors import UpstreamError
from services.gateway.relay.operation import StreamTally
from services.gateway.relay.sse import EventTooLong, Framer, events as split, parse
from services.gateway.relay.watch import Watch
from shared.errors import ServiceError

#: Bytes that may wait for a client in this process before reading from LiteLLM pauses.
WRITE_BUFFER = 32 * 1024
#: Limit of the comments held back before the first event.
MAX_HELD = 64 * 1024
#: Seconds for a client to take the error event that ends its stream.
FAREWELL = 2.0


class StreamFailed(Exception):
    """LiteLLM sent an error event; ``error`` is its error object."""

    def __init__(self, error: Any) -> None:
        super().__init__()
        self.error = error


class StreamRelay:
    """The relay of one stream: sends events as they become complete.

    ``committed``: the response has begun, with the first event or, if that takes long, the first comment.
    ``begun``: an event was relayed. ``complete``: the client has received all of a stream that ended well.

    :param on_begin: called when the first event has gone out.
    """

    __slots__ = (
        *("_chunked", "_commit", "_dialect", "_ended", "_framer", "_held", "_on_begin"),
        *("_protocol", "_request", "_tally", "begun", "complete", "response"),
    )

    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        tally: StreamTally,
        dialect: Dialect,
        on_begin: Callable[[], None],
    ) -> None:
        self._request, self.response, self._tally = request, response, tally
        self._dialect, self._on_begin = dialect, on_begin
        self._protocol = request.protocol
        self._chunked = request.version >= HttpVersion11
        if not self._chunked:
            response.force_close()  # its end is the connection's
        self._framer = Framer()
        self._held = b""
        self._commit = asyncio.Lock()
        self._ended = False
        self.begun = False
        self.complete = False

    @property
    def comments(self) -> bool:
        """Whether silence is filled with comments."""
        return bool(self._dialect.comment)

    @property
    def committed(self) -> bool:
        return self.response.prepared

    async def pump(self, content: aiohttp.StreamReader, watch: Watch) -> None:
        """Relay to the end. Returns if the stream ended well.

        :raises StreamFailed: it ended with an error event.
        :raises UpstreamError: it ended badly in another way.
        :raises ConnectionError: the client has left.
        """
        read, push, tally, rewrite = content.readany, self._framer.push, self._tally, self._dialect.events
        now = asyncio.get_running_loop().time
        while True:
            try:
                data = await read()
            except aiohttp.ClientError as error:
                await self._end(watch, error.with_traceback(None))  # content holds it: a cycle with this frame
                return
            if not data:
                await self._end(watch, None)
                return
            try:
                events = push(data)
            except EventTooLong as error:
                raise UpstreamError("The model's answer has an event without an end.") from error
            if events.startswith(b"data: ") or self._has_data(events):
                watch.seen = now()
            block = rewrite(tally.read(events))
            if tally.over:
                watch.writing = True
                await self._finish(block)
                return
            if self.begun:
                if block:
                    self._write(block)
                if self._protocol.writing_paused:
                    watch.writing = True
                    await self._request.writer.drain()
                    watch.writing = False
                    watch.seen = now()
            elif block:
                await self._begin(block)

    def _has_data(self, events: bytes) -> bool:
        """Whether a read has more than comments, which keep a connection alive and say nothing about the model."""
        if not events:
            return not self._framer.in_comment
        return any(parse(event)[1] is not None for event in split(events))

    def _write(self, block: bytes) -> None:
        """Write as ``StreamResponse.write`` does in four calls, without its second buffer limit.

        :raises ConnectionResetError: the client has left.
        """
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        transport.write(b"%x\r\n%b\r\n" % (len(block), block) if self._chunked else block)

    async def _begin(self, block: bytes) -> None:
        """Commit the response with the first event.

        Comments before it are held back, so that an error can be a plain answer.
        """
        self._held += block
        if not self._tally.started and len(self._held) < MAX_HELD:
            return
        await self._prepare()
        block, self._held = self._held, b""
        self._write(block)
        if self._tally.started:
            self.begun = True
            self._on_begin()

    async def _relay(self, block: bytes) -> None:
        if self.begun:
            self._write(block)
        else:
            await self._begin(block)

    async def _prepare(self) -> None:
        async with self._commit:  # a comment and the first event may meet here
            if not self.response.prepared:
                await self.response.prepare(self._request)

    async def _finish(self, block: bytes) -> None:
        """The last events, which end with ``[DONE]`` or were followed by an error."""
        if self._tally.done:
            await self._prepare()
            self._ended = True  # no comment may follow, however long the client needs for the rest
            await self.response.write_eof(self._held + block)
            if not self.begun:
                self._on_begin()
            self.begun = self.complete = True
            return
        if block and self._tally.started:
            await self._relay(block)
        raise StreamFailed(self._tally.error)

    async def _end(self, watch: Watch, broken: aiohttp.ClientError | None) -> None:
        """LiteLLM has ended the stream, or the connection broke."""
        tally = self._tally
        watch.writing = True
        block = self._dialect.events(tally.read_last(self._framer.rest()))
        if tally.over:
            await self._finish(block)
            return
        if block:
            await self._relay(block)
        if broken is not None or not tally.complete:
            raise UpstreamError("The model's answer was cut short.") from broken
        self._ended = True
        await self.response.write_eof()
        self.complete = True

    async def keep_alive(self) -> None:
        """Send a comment line, between events only."""
        if not self._framer.between_events:
            return
        try:
            await self._prepare()
            if self._ended:
                return
            held, self._held = self._held, b""
            self._write(held + self._dialect.comment)
        except ConnectionError:
            pass  # the request notices that itself

    async def fail(self, error: ServiceError) -> None:
        """End a committed stream with an error event, without ``[DONE]``."""
        self.response.force_close()
        self._ended = True
        try:
            async with asyncio.timeout(FAREWELL):
                await self.response.write_eof(self._dialect.error_event(error))
        except TimeoutError:
            transport = self._request.transport
            if transport is not None:
                transport.abort()
        except ConnectionError:
            pass  # the client has left
