"""PostgreSQL behind one small interface; the only module that knows aiopg.

Statements are plain SQL with ``:name`` parameters: ``Query``. Nothing is set in the startup packet beyond what every
pooler takes, so PgBouncer may stand in between in session or transaction mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
from collections.abc import AsyncIterator, Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import aiopg
import aiopg.connection
import psycopg2

from shared.errors import DependencyUnavailable
from shared.stores import postgres_faults, postgres_places
from shared.stores.dependency import Dependency
from shared.stores.postgres_faults import CONNECTION_FAULTS
from shared.telemetry import spans

Row = dict[str, Any]

_PARAMETER = re.compile(r"(?<![:\w\\]):(\w+)(?!:)")
#: The longest that a statement of a request may take, in seconds. ``ALTER ROLE`` sets it at the server
#: (deploy/roles.sql); pools that wait longer set it in each transaction.
REQUEST_SECONDS = 2.0


class DatabaseUnavailable(DependencyUnavailable):
    """PostgreSQL could not be asked, refused because of its own state, or did not answer in time.

    Every method that runs a statement may raise it. Whether a write took place is unknown. ``sqlstate`` is None when no
    server answered.
    """

    def __init__(self, reason: str, *, sqlstate: str | None = None) -> None:
        super().__init__("postgres", reason=reason)
        self.sqlstate = sqlstate


def _poll(readers: list[int], *_others: Any) -> None:
    """``select.select`` for any number of open files.

    :raises OSError: EBADF, for a descriptor that is closed. The loop has forgotten its writer then.
    """
    poll = select.poll()
    poll.register(readers[0], select.POLLIN)
    if any(events & select.POLLNVAL for _, events in poll.poll(0)):
        with contextlib.suppress(OSError):
            asyncio.get_running_loop().remove_writer(readers[0])
        raise OSError(9, "Bad file descriptor")


# aiopg asks with select(2) whether the socket of a failed connection is still open. That fails beyond descriptor
# 1,023, and the failure leaves whoever waits for the connection waiting. For a closed socket aiopg removes the reader
# only, and uvloop then refuses to watch the next socket of that number, whoever opened it
aiopg.connection.select = SimpleNamespace(select=_poll)  # type: ignore[assignment, attr-defined]


class Query:
    """A statement in psycopg2's form. Its parameters are passed by name."""

    __slots__ = ("name", "sql")

    def __init__(self, sql: str) -> None:
        self.sql = sql
        self.name = f"postgresql {sql.split(maxsplit=1)[0].lower()}"

    @classmethod
    def text(cls, sql: str) -> Query:
        """Plain SQL with ``:name`` parameters as SQLAlchemy has them, whose import is a quarter of a service's start.

        ``\\:`` is a colon before a name that is no parameter.
        """
        return cls(_PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%")).replace("\\:", ":"))


class Statements:
    """Running statements, in a transaction or each on its own."""

    async def _run(self, query: Query, params: dict[str, Any], take: Callable[[aiopg.Cursor], Any], read: bool) -> Any:
        raise TypeError("use Database or Transaction")

    async def fetch(self, query: Query, **params: Any) -> list[Row]:
        """All rows of a read, which is repeated once when the connection turns out to be dead."""
        rows: list[Row] = await self._run(query, params, _all_rows, True)
        return rows

    async def fetch_one(self, query: Query, **params: Any) -> Row | None:
        """The first row, or None. Not repeated: usable for ``INSERT ... RETURNING`` too."""
        rows: list[Row] = await self._run(query, params, _all_rows, False)
        return rows[0] if rows else None

    async def execute(self, query: Query, **params: Any) -> int:
        """The number of rows that a write affected."""
        count: int = await self._run(query, params, _row_count, False)
        return count


async def _all_rows(cursor: aiopg.Cursor) -> list[Row]:
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, map(_plain, row), strict=True)) for row in await cursor.fetchall()]


async def _row_count(cursor: aiopg.Cursor) -> int:
    count: int = cursor.rowcount
    return count


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


async def _perform(
    cursor: aiopg.Cursor, query: Query, params: dict[str, Any], take: Callable[[aiopg.Cursor], Any]
) -> Any:
    task = asyncio.current_task()
    asked_before = task.cancelling() if task else 0
    try:
        await cursor.execute(query.sql, params)
        result = await take(cursor)
    except asyncio.CancelledError as cancelled:
        # aiopg reports the server's statement_timeout as a cancellation that nobody asked for
        timed_out = cancelled.__context__
        if isinstance(timed_out, psycopg2.extensions.QueryCanceledError) and not (task and task.cancelling()):
            raise timed_out from None
        raise
    if task and task.cancelling() > asked_before:
        raise asyncio.CancelledError  # aiopg loses one that comes with the answer (asyncio.wait_for of Python 3.11)
    return result


class Transaction(Statements):
    def __init__(self, cursor: aiopg.Cursor) -> None:
        self._cursor = cursor

    async def _run(self, query: Query, params: dict[str, Any], take: Callable[[aiopg.Cursor], Any], read: bool) -> Any:
        with spans.child(query.name, "postgresql"):
            return await _perform(self._cursor, query, params, take)


class Database(Statements):
    """A pool of connections to one of the servers that the URL names.

    Every call ends within ``timeout`` seconds, answered or with ``DatabaseUnavailable``. The pool stays with a server
    for as long as it serves; when it does not, the next call looks the names up again and tries each server in turn.
    """

    def __init__(self, url: str, *, max_size: int, timeout: float, state: Dependency | None) -> None:
        self.state = state or Dependency("postgres")
        self._url, self._max, self._timeout = url, max_size, timeout
        self._milliseconds = int(timeout * 1000)
        self._pool: aiopg.Pool | None = None
        self._place: str | None = None
        self._opening = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str, *, max_size: int = 10, timeout: float = REQUEST_SECONDS, state: Dependency | None = None
    ) -> AsyncIterator[Database]:
        """Opens lazily: a service starts, and says so in its readiness, while PostgreSQL is down.

        :param state: of another pool of this process on the same server, so that the log tells of an outage once.
        """
        database = cls(url, max_size=max_size, timeout=timeout, state=state)
        try:
            yield database
        finally:
            await database.close()

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            await self._pool.wait_closed()
            self._pool = None
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _open(self) -> aiopg.Pool:
        """:raises OSError, psycopg2.Error: no server could be connected to; the last one's error."""
        async with self._opening:
            if self._pool is None:
                places = await postgres_places.resolve(self._url)
                places.sort(key=lambda place: place != self._place)  # the last one that served comes first
                for number, place in enumerate(places, start=1):
                    pool = await self._pool_of(place)
                    try:
                        # one that hangs leaves time for the others; a long statement's patience is not for connecting
                        patience = min(self._timeout, max(REQUEST_SECONDS, self._timeout / 10))
                        async with asyncio.timeout(patience / len(places)):
                            pool.release(await pool.acquire())
                    except CONNECTION_FAULTS:
                        pool.terminate()
                        if number == len(places):
                            raise
                    else:
                        self._pool, self._place = pool, place
                        break
            assert self._pool is not None
            return self._pool

    def _pool_of(self, place: str) -> Coroutine[Any, Any, aiopg.Pool]:
        pool: Coroutine[Any, Any, aiopg.Pool] = aiopg.create_pool(
            place,
            minsize=0,
            maxsize=self._max,
            timeout=0.9 * self._timeout,  # less than the whole call's, which would hide it
            enable_hstore=False,
            pool_recycle=600,
            connect_timeout=max(2, int(self._timeout)),
            application_name="mlpa",
            keepalives_idle=30,
            tcp_user_timeout=5000,  # milliseconds until a silent server counts as lost
        )
        return pool

    def _leave(self, pool: aiopg.Pool) -> None:
        """Use new connections from now on: to this server if it still serves, or to another."""
        if pool is self._pool:
            self._pool = None
            pool.close()  # those in use are closed when they come back
            task = asyncio.create_task(pool.clear())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    @contextlib.asynccontextmanager
    async def _cursor(self) -> AsyncIterator[aiopg.Cursor]:
        pool = self._pool or await self._open()
        try:
            connection = await pool.acquire()
        except CONNECTION_FAULTS:
            if pool.size - pool.freesize < self._max:  # otherwise all are in use, and none was to be made
                self._leave(pool)
            raise
        try:
            async with connection.cursor() as cursor:
                yield cursor
        except BaseException as error:
            # its state is unknown (cancelled, timed out, dropped): never hand it to another request
            with contextlib.suppress(Exception):
                connection.close()
            if postgres_faults.wants_new_connection(error):
                self._leave(pool)
            raise
        finally:
            with contextlib.suppress(*CONNECTION_FAULTS):
                pool.release(connection)  # at once; what it returns only wakes up who waits for one

    async def _run(self, query: Query, params: dict[str, Any], take: Callable[[aiopg.Cursor], Any], read: bool) -> Any:
        with spans.child(query.name, "postgresql"):
            if self._timeout > REQUEST_SECONDS:
                async with self.transaction() as transaction:
                    return await transaction._run(query, params, take, read)
            for attempt in (1, 2):
                try:
                    async with asyncio.timeout(self._timeout), self._cursor() as cursor:
                        result = await _perform(cursor, query, params, take)
                except (psycopg2.Error, *CONNECTION_FAULTS) as error:
                    if not (read and attempt == 1 and postgres_faults.wants_new_connection(error)):
                        raise self._unavailable(error) from error
                else:
                    self.state.answered()
                    return result
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One transaction: committed when the block ends, rolled back when it raises.

        :raises DatabaseUnavailable: also when the connection was lost at the commit, which may have taken place.
        """
        try:
            async with asyncio.timeout(1.5 * self._timeout), self._cursor() as cursor:
                await cursor.execute(
                    f"begin; set local statement_timeout = {self._milliseconds};"
                    f" set local idle_in_transaction_session_timeout = {2 * self._milliseconds}"
                )
                yield Transaction(cursor)
                await cursor.execute("commit")
            self.state.answered()
        except (psycopg2.Error, *CONNECTION_FAULTS) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> DatabaseUnavailable:
        """:raises BaseException: the error itself, where it is a fault of our statement."""
        if not postgres_faults.is_unavailability(error):
            raise error
        why = postgres_faults.reason(error)
        self.state.failed(why)
        return DatabaseUnavailable(why, sqlstate=error.pgcode if isinstance(error, psycopg2.Error) else None)
