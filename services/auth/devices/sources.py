"""How many keys each source enrolled in the last hour, which shows a farm; and receipts that wait to be renewed."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from shared.domain.service_types import ServiceTypes
from shared.service import background
from shared.stores.postgres import Database, Query
from shared.telemetry.metrics import Registry

#: Seconds between two readings.
_EVERY = 60.0
_STEPS = (1, 10, 100, 1000)
_AT_LEAST = ", ".join(f"count(*) filter (where keys >= {step}) as from_{step}" for step in _STEPS)
_READ = Query.text(
    f"""
    select coalesce(max(keys), 0) as most, {_AT_LEAST}
    from (
        select count(*) as keys from devices
        where created_at > now() - interval '1 hour' and source_digest is not null group by source_digest
    ) as sources
    """  # noqa: S608
)
_OLDEST_DUE = Query.text(
    """
    select coalesce(extract(epoch from now() - min(receipt_due_at)), 0)::float as age from devices
    where receipt_due_at <= now() and receipt is not null and revoked_at is null
    """
)


class EnrollingSources:
    """Gauges of how many keys the sources enrolled in the last hour; no series is a source's own.

    And of how long receipts have been due, where a row asks for the risk metric that they are renewed for.
    """

    def __init__(self, database: Database, service_types: ServiceTypes, registry: Registry) -> None:
        self._database = database
        self._rows = service_types.by_name
        self._registry = registry
        self._most = registry.gauge(
            "enrolled_keys_of_busiest_source", "Most App Attest keys that one source enrolled in the last hour."
        )
        self._sources = registry.gauge(
            "enrolling_sources", "Sources that enrolled at least so many App Attest keys in the last hour.", ("keys",)
        )
        for step in _STEPS:
            self._sources.preset(str(step))
        self._oldest_due = registry.gauge(
            "receipts_oldest_due_seconds",
            "For how long the oldest receipt to be renewed has been due; 0 if no row has max_risk_metric.",
        )

    async def read(self) -> None:
        found = (await self._database.fetch(_READ))[0]
        self._most.set(found["most"])
        for step in _STEPS:
            self._sources.set(found[f"from_{step}"], str(step))
        needed = any(row.max_risk_metric for row in self._rows.values())
        self._oldest_due.set((await self._database.fetch(_OLDEST_DUE))[0]["age"] if needed else 0)

    def running(self) -> AbstractAsyncContextManager[None]:
        return background.running(self._registry, enrolling_sources=background.every(_EVERY, self.read))
