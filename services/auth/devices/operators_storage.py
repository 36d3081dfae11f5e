"""The SQL of operators' work on App Attest devices."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shared.stores.postgres import Database, Query, Transaction

#: Above every id in byte order.
_LAST = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """An enrolled key as operators see it."""

    key_id: str
    environment: str | None
    bundle_id: str | None
    bundle_version: str | None
    counter: int
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None
    revoked_reason: str | None


_COLUMNS = (
    "key_id, environment, bundle_id, bundle_version, counter, created_at, last_used_at, revoked_at, revoked_reason"
)
_RANGE = "key_id >= :q and key_id < :end"
_FORWARDS = Query.text(
    f"select {_COLUMNS} from devices where key_id > :key and {_RANGE} order by key_id limit :limit"  # noqa: S608
)
_BACKWARDS = Query.text(
    f"select {_COLUMNS} from devices where key_id < :key and {_RANGE} order by key_id desc limit :limit"  # noqa: S608
)
_FIND = Query.text(f"select {_COLUMNS} from devices where key_id = :key_id")  # noqa: S608
_LOCK = Query.text(f"select {_COLUMNS} from devices where key_id = :key_id for update")  # noqa: S608


async def page(database: Database, *, q: str, key: str | None, backwards: bool, limit: int) -> list[DeviceRow]:
    """Devices whose key id starts with ``q``, by key id, from ``key`` on in the given direction.

    :raises DatabaseUnavailable: PostgreSQL could not be asked.
    """
    edge = _LAST if backwards else ""
    query = _BACKWARDS if backwards else _FORWARDS
    rows = await database.fetch(query, q=q, end=q + _LAST, key=edge if key is None else key, limit=limit)
    return [DeviceRow(**row) for row in rows]


async def find(database: Database, key_id: str) -> DeviceRow | None:
    """:raises DatabaseUnavailable: PostgreSQL could not be asked."""
    rows = await database.fetch(_FIND, key_id=key_id)
    return DeviceRow(**rows[0]) if rows else None


async def lock(transaction: Transaction, key_id: str) -> DeviceRow | None:
    """Lock a device until the transaction ends.

    :raises DatabaseUnavailable: PostgreSQL could not be asked.
    """
    rows = await transaction.fetch(_LOCK, key_id=key_id)
    return DeviceRow(**rows[0]) if rows else None
