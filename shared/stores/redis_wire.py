"""Commands sent to Redis with as little work as possible: one pipelined connection per node.

redis-py opens a connection (TLS, unix sockets, credentials, database) and this module then speaks on it: what is
called in one turn of the event loop goes out in one write, and replies come back in order, parsed by hiredis. That
costs a fifth of a call through redis-py's pool, and every admission, settlement and exchange has such calls.

Each connection knows the run id of the server behind it, the *epoch*, which scripts get as their first argument. A
server that restarted, or a replica that took over, has another one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from shared.service.flight import Flight
from shared.state.script import Script, ScriptCall
from shared.telemetry import logs

_log = logs.logger("budget")
#: Seconds that a connection to a replica must have lasted before another one is tried in its place.
_RECONNECT = 1.0
_MORE = object()
_ABSENT = ConnectionError("the connection to Redis is closed")


class ScriptFailed(Exception):
    """Redis answered an error. ``code`` is its first word: ``MOVED``, ``NOSCRIPT``, ``OOM``..."""

    def __init__(self, message: str) -> None:
        self.code = message.partition(" ")[0]
        super().__init__(message)


def pack(*args: str | bytes | float) -> bytes:
    """One command in Redis's protocol."""
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # the stub asks for a tuple of one
    return packed


def pack_script(call: ScriptCall, epoch: str) -> bytes:
    return pack("EVALSHA", call.script.sha, str(len(call.keys)), *call.keys, *call.argv(epoch))


class Link(asyncio.Protocol):
    """One connection, shared by everybody. Every call is answered, or fails, within ``timeout`` seconds."""

    def __init__(self, connection: AbstractConnection, epoch: str, timeout: float) -> None:
        self.epoch = epoch
        self.closed = False
        self.retired = False
        self._connection, self._timeout = connection, timeout
        self._loop = asyncio.get_running_loop()
        self._made_at = self._steady_since = self._loop.time()
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._out: list[bytes] = []
        self._pending: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        writer: Any = connection._writer  # redis-py offers no public way to its transport
        self._transport = cast("asyncio.Transport", writer.transport)
        self._transport.set_protocol(self)

    @classmethod
    async def open(cls, pool: ConnectionPool, scripts: Sequence[Script], timeout: float) -> Link:
        """Connect, learn the epoch, and have the scripts loaded.

        :raises OSError, TimeoutError, RedisError: the server can't be used.
        """
        connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(timeout):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command("INFO", "server")
                info = (await connection.read_response()).decode()
            epoch = info.partition("run_id:")[2].partition("\r\n")[0]
            if not epoch:
                raise ConnectionError("the server does not tell its run_id")
            link = cls(connection, epoch, timeout)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        for script in scripts:
            loaded = link.send(pack("SCRIPT", "LOAD", script.source))
            loaded.add_done_callback(observe)
        return link

    @property
    def steady_for(self) -> float:
        """Seconds since the server last said that it runs no scripts, or since the link was made."""
        return self._loop.time() - self._steady_since

    def unsteady(self) -> None:
        """The server answered that it runs no scripts for now."""
        self._steady_since = self._loop.time()

    def retire(self) -> None:
        """Take no more calls, and close when those that are pending were answered."""
        self.retired = True
        if not self._pending:
            self.close()

    def leave_demoted(self) -> bool:
        """Retire a link to a demoted primary, whose name may lead to the new one by now.

        Returns False for a link that was just made, and so leads to where the name does.
        """
        if self._loop.time() - self._made_at <= _RECONNECT:
            return False
        self.retire()
        return True

    @property
    def host(self) -> str:
        """The server's, as this connection found it."""
        host: str = getattr(self._connection, "host", "")
        return host

    def send(self, command: bytes) -> asyncio.Future[Any]:
        """The future reply. Fails with ``ScriptFailed``, or ``ConnectionError`` when the outcome is unknown."""
        future = self._loop.create_future()
        if self.closed:
            future.set_exception(ConnectionError("the connection to Redis is closed"))
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(command)
        self._pending.append((future, self._loop.time() + self._timeout))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout / 4, self._check)
        return future

    def _flush(self) -> None:
        if self._out and not self.closed:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _check(self) -> None:
        """Time out what waited too long. The connection goes with it: replies come in order, or not at all."""
        self._watch = None
        if not self._pending:
            return
        if self._loop.time() >= self._pending[0][1]:
            self.close(TimeoutError("Redis did not answer in time"))
        else:
            self._watch = self._loop.call_later(self._timeout / 4, self._check)

    def data_received(self, data: bytes) -> None:
        reader, pending = self._reader, self._pending
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _MORE:
                future, _ = pending.popleft()
                if future.done():
                    continue  # its caller was cancelled
                if isinstance(reply, hiredis.ReplyError):
                    future.set_exception(ScriptFailed(str(reply)))
                else:
                    future.set_result(reply)
            if self.retired and not pending:
                self.close()
        except (hiredis.ProtocolError, IndexError) as error:
            self.close(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(exc or _ABSENT)

    def close(self, reason: Exception = _ABSENT) -> None:
        """Close, and fail what is pending."""
        if self.closed:
            return
        self.closed = True
        if self._watch is not None:
            self._watch.cancel()
        connection: Any = self._connection
        connection._reader = connection._writer = None
        self._transport.abort()
        for future, _ in self._pending:
            if not future.done():
                failure = ConnectionError(str(reason))
                failure.__cause__ = reason
                future.set_exception(failure)
        self._pending.clear()


def observe(future: asyncio.Future[Any]) -> None:
    """A failure here shows again, and is handled, at the first use."""
    if not future.cancelled():
        future.exception()


class Node:
    """A Redis server: its link, reopened when needed, never twice at a time."""

    def __init__(
        self, pool: ConnectionPool, scripts: Sequence[Script], timeout: float, on_epoch: Callable[[Node], None]
    ) -> None:
        self._pool, self._scripts, self._timeout, self._on_epoch = pool, scripts, timeout, on_epoch
        self._link: Link | None = None
        self._opening = Flight(self._open)
        self._epoch = ""

    @property
    def link(self) -> Link | None:
        """The open link, if there is one."""
        link = self._link
        return link if link is not None and not (link.closed or link.retired) else None

    async def connect(self) -> Link:
        """The open link, made if need be.

        :raises ConnectionError: could not be made within the timeout.
        """
        if (link := self.link) is not None:
            return link
        try:
            return await self._opening()
        except (RedisError, OSError, TimeoutError) as error:
            raise ConnectionError(str(error)) from error

    async def _open(self) -> Link:
        link = self._link = await Link.open(self._pool, self._scripts, self._timeout)
        if self._epoch != link.epoch:
            changed, self._epoch = bool(self._epoch), link.epoch
            if changed:
                _log.warning("redis_epoch_changed", epoch=self._epoch)
            self._on_epoch(self)
        return link

    async def close(self) -> None:
        await self._opening.close()
        if self._link is not None:
            self._link.close()
