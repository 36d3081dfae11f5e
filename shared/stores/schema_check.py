"""The readiness check of PostgreSQL: a read and a write like those of the service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from shared.service.health import CheckFailed
from shared.stores.postgres import Database, DatabaseUnavailable, Query
from shared.stores.postgres_faults import MISSING_SCHEMA
from shared.stores.revisions import revisions

_REVISION = Query.text("select version_num from alembic_version")


class PostgresCheck:
    """Fails when PostgreSQL can't be written to, or its schema is older than this code's.

    An older schema makes the service unavailable, so that a rollout without ``mlpa migrate`` stops at its first pod.
    A newer one does not: that is the code of the release before, which the schema still serves.

    :param can_write: performs a write of this service that touches no row. A read-only server refuses it like any
        other, and so does a server that lacks the right to it.
    """

    def __init__(self, database: Database, can_write: Callable[[Database], Awaitable[None]]) -> None:
        self._database, self._can_write = database, can_write
        self._older = frozenset(revisions()[:-1])

    async def __call__(self) -> None:
        """
        :raises CheckFailed: the schema is older than the code's.
        :raises DatabaseUnavailable: PostgreSQL could not be asked.
        """
        try:
            rows = await self._database.fetch(_REVISION)
        except DatabaseUnavailable as error:
            if error.sqlstate in MISSING_SCHEMA:
                raise CheckFailed("schema", required=True) from error
            raise
        if not rows or rows[0]["version_num"] in self._older:
            raise CheckFailed("schema", required=True)
        await self._can_write(self._database)
