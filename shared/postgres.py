"""PostgreSQL behind one small interface; the only module that knows aiopg.

Statements are SQLAlchemy Core (or plain SQL with ``:name`` parameters), compiled once at import: ``Query``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiopg
import psycopg2
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.sql.compiler import SQLCompiler

from shared.errors import DependencyUnavailable

Row = dict[str, Any]

_dialect: sa.engine.Dialect = PGDialect_psycopg2(paramstyle="pyformat")  # type: ignore[no-untyped-call]
_FAULTS = (psycopg2.OperationalError, psycopg2.InterfaceError, AssertionError, OSError, TimeoutError)


class DatabaseUnavailable(DependencyUnavailable):
    """PostgreSQL could not be asked, or did not answer in time. Whether a write took place is unknown."""

    def __init__(self) -> None:
        super().__init__("postgres")


class Query:
    """A statement, compiled once. Its bind parameters are passed by name."""

    __slots__ = ("_compiled", "_processors", "sql")

    def __init__(self, statement: sa.sql.expression.ClauseElement) -> None:
        compiled: Any = statement.compile(dialect=_dialect, compile_kwargs={"render_postcompile": True})
        self._compiled: SQLCompiler = compiled
        self._processors = self._compiled._bind_processors  # JSONB and the like want theirs run
        self.sql = str(self._compiled)

    @classmethod
    def text(cls, sql: str, **types: sa.types.TypeEngine[Any]) -> Query:
        """Plain SQL with ``:name`` parameters; ``types`` of those that need one (JSONB)."""
        statement = sa.text(sql)
        if types:
            statement = statement.bindparams(*(sa.bindparam(name, type_=kind) for name, kind in types.items()))
        return cls(statement)

    def parameters(self, params: dict[str, Any]) -> dict[str, Any]:
        values = dict(self._compiled.construct_params(params) or {})
        for name, process in self._processors.items():
            if name in values and callable(process):
                values[name] = process(values[name])
        return values


class Statements:
    """What can be asked of a connection; the same on the database and inside a transaction."""

    async def _run(self, query: Query, params: dict[str, Any], take: Callable[[aiopg.Cursor], Any], read: bool) -> Any:
        raise TypeError("use Database or Transaction")

    async def fetch(self, query: Query, **params: Any) -> list[Row]:
        """All rows. A read: asked once more when the connection turns out to be dead.

        :raises DatabaseUnavailable:
        """
        rows: list[Row] = await self._run(query, params, _all_rows, True)
        return rows

    async def fetch_one(self, query: Query, **params: Any) -> Row | None:
        """The first row, or None. Not repeated: usable for ``INSERT ... RETURNING`` too.

        :raises DatabaseUnavailable:
        """
        rows: list[Row] = await self._run(query, params, _all_rows, False)
        return rows[0] if rows else None

    async def execute(self, query: Query, **params: Any) -> int:
        """The number of rows that a write affected.

        :raises DatabaseUnavailable:
        """
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
        await cursor.execute(query.sql, query.parameters(params))
        result = await take(cursor)
    except asyncio.CancelledError as cancelled:
        # aiopg reports the server's statement_timeout as a cancellation that nobody asked for
        if isinstance(cancelled.__context__, psycopg2.extensions.QueryCanceledError) and not (
            task and task.cancelling()
        ):
            raise DatabaseUnavailable from cancelled
        raise
    if task and task.cancelling() > asked_before:
        raise asyncio.CancelledError  # aiopg loses one that comes with the answer (asyncio.wait_for of Python 3.11)
    return result


class Transaction(Statements):
    def __init__(self, cursor: aiopg.Cursor) -> None:
        self._cursor = cursor

    async def _run(self, query: Query, params: dict[str, Any], take: Callable[[aiopg.Cursor], Any], read: bool) -> Any:
        return await _perform(self._cursor, query, params, take)


class Database(Statements):
    """A pool of connections. Every call ends within ``timeout`` seconds, answered or with ``DatabaseUnavailable``."""

    def __init__(self, url: str, *, min_size: int, max_size: int, timeout: float) -> None:
        self._url, self._min, self._max, self._timeout = url, min_size, max_size, timeout
        self._pool: aiopg.Pool | None = None
        self._opening = asyncio.Lock()

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str, *, min_size: int = 0, max_size: int = 10, timeout: float = 2.0
    ) -> AsyncIterator[Database]:
        """Opens lazily: a service starts, and says so in its readiness, while PostgreSQL is away."""
        database = cls(url, min_size=min_size, max_size=max_size, timeout=timeout)
        try:
            yield database
        finally:
            await database.close()

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            await self._pool.wait_closed()
            self._pool = None

    async def _open(self) -> aiopg.Pool:
        async with self._opening:
            if self._pool is None:
                milliseconds = int(self._timeout * 1000)
                self._pool = await aiopg.create_pool(
                    self._url,
                    minsize=self._min,
                    maxsize=self._max,
                    timeout=self._timeout,
                    enable_hstore=False,
                    pool_recycle=600,
                    connect_timeout=max(2, int(self._timeout)),
                    application_name="mlpa",
                    # the server gives up on what nobody waits for any more
                    options=f"-c statement_timeout={milliseconds} -c client_connection_check_interval=200 "
                    f"-c idle_in_transaction_session_timeout={2 * milliseconds} -c timezone=UTC",
                    keepalives_idle=30,
                )
            return self._pool

    @contextlib.asynccontextmanager
    async def _cursor(self) -> AsyncIterator[aiopg.Cursor]:
        pool = self._pool or await self._open()
        connection = await _acquire(pool)
        try:
            async with connection.cursor() as cursor:
                yield cursor
        except BaseException:
            # its state is unknown (cancelled, timed out, dropped): never hand it to another request
            with contextlib.suppress(Exception):
                connection.close()
            raise
        finally:
            with contextlib.suppress(*_FAULTS):
                await asyncio.shield(_release(pool, connection))

    async def _run(self, query: Query, params: dict[str, Any], take: Callable[[aiopg.Cursor], Any], read: bool) -> Any:
        for attempt in (1, 2):
            try:
                async with asyncio.timeout(self._timeout), self._cursor() as cursor:
                    return await _perform(cursor, query, params, take)
            except TimeoutError as error:
                raise DatabaseUnavailable from error
            except _FAULTS as error:
                if attempt == 2 or not read:
                    raise DatabaseUnavailable from error
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One transaction: committed when the block ends, rolled back when it raises.

        :raises DatabaseUnavailable:
        """
        try:
            async with asyncio.timeout(1.5 * self._timeout), self._cursor() as cursor, cursor.begin():
                yield Transaction(cursor)
        except _FAULTS as error:
            raise DatabaseUnavailable from error

    async def ping(self) -> None:
        """:raises DatabaseUnavailable:"""
        await self.fetch(_PING)


async def _acquire(pool: aiopg.Pool) -> aiopg.Connection:
    """
    :raises OperationalError: and whatever else ``_FAULTS`` has.
    """
    try:
        return await pool.acquire()
    except RuntimeError:
        # uvloop: an earlier connection on the same file descriptor was reset while it was made. That is forgotten now
        try:
            return await pool.acquire()
        except RuntimeError as error:
            raise psycopg2.OperationalError("no connection could be made") from error


async def _release(pool: aiopg.Pool, connection: aiopg.Connection) -> None:
    result = pool.release(connection)
    if result is not None:
        await result


_PING = Query.text("select 1 as one")


def columns(table: sa.Table, *, skip: Sequence[str] = ()) -> list[sa.Column[Any]]:
    """The columns of a table in order, without some."""
    return [column for column in table.columns if column.name not in skip]
