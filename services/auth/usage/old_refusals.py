"""The deletion of refused requests that are older than a week."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from shared.service import background
from shared.stores.postgres import Database, Query
from shared.telemetry.metrics import Registry

KEPT_DAYS = 7
_EVERY, _AT_ONCE = 60.0, 5000
_DELETE = Query.text(
    """
    delete from refusals where (at, id) in (
        select at, id from refusals where at < now() - make_interval(days => :days) order by at, id limit :most)
    """
)


class OldRefusals:
    """Deletes in batches, once a minute. Processes may do so at once: the second finds the rows gone."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database, self._registry = database, registry

    async def delete(self) -> None:
        while await self._database.execute(_DELETE, days=KEPT_DAYS, most=_AT_ONCE) == _AT_ONCE:
            pass

    def running(self) -> AbstractAsyncContextManager[None]:
        return background.running(self._registry, old_refusals=background.every(_EVERY, self.delete))
