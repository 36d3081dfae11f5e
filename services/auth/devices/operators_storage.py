"""The SQL of operators' work on App Attest devices. Every function raises ``DatabaseUnavailable``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec.structs import asdict

from services.auth.pagination import LAST
from shared.stores.postgres import Database, Query, Transaction


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
    validation_category: int | None
    risk_metric: int | None
    risk_metric_at: datetime | None
    receipt_fault: str | None
    source_digest: str | None


_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Chosen(msgspec.Struct, frozen=True):
    """The criteria of a choice of devices; those that are None don't count. First seen: from, and before."""

    bundle_id: _Text | None = None
    bundle_version: _Text | None = None
    validation_category: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    first_seen_from: _Moment | None = None
    first_seen_to: _Moment | None = None
    source_digest: _Text | None = None

    def given(self) -> dict[str, Any]:
        """The criteria that count, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


_COLUMNS = ", ".join(field.name for field in fields(DeviceRow))
# the server sees constants: it drops the conditions of absent criteria, and uses the index of a given one
_CHOSEN = """
    (cast(:bundle_id as text) is null or bundle_id = :bundle_id)
    and (cast(:bundle_version as text) is null or bundle_version = :bundle_version)
    and (cast(:validation_category as bigint) is null or validation_category = :validation_category)
    and (cast(:first_seen_from as timestamptz) is null or created_at >= :first_seen_from)
    and (cast(:first_seen_to as timestamptz) is null or created_at < :first_seen_to)
    and (cast(:source_digest as text) is null or source_digest = :source_digest)
"""
_RANGE = f"key_id >= :q and key_id < :end and {_CHOSEN}"
_FORWARDS = Query.text(
    f"select {_COLUMNS} from devices where key_id > :key and {_RANGE} order by key_id limit :limit"  # noqa: S608
)
_BACKWARDS = Query.text(
    f"select {_COLUMNS} from devices where key_id < :key and {_RANGE} order by key_id desc limit :limit"  # noqa: S608
)
_FIND = Query.text(f"select {_COLUMNS} from devices where key_id = :key_id")  # noqa: S608
_LOCK = Query.text(f"select {_COLUMNS} from devices where key_id = :key_id for update")  # noqa: S608


_BLOCKABLE = f"""
    from devices d where {_CHOSEN} and revoked_at is null
        and not exists (select from identities i where i.identity = d.key_id and i.blocked_at is not null)
"""
_COUNT = Query.text(f"select count(*) as devices {_BLOCKABLE}")
# An erasure waits for the lock, exchanges do not
_BLOCK = Query.text(
    f"""
    with meant as (select key_id {_BLOCKABLE} order by key_id limit :limit for key share of d),
    blocked as (
        insert into identities as i (identity, blocked_at, blocked_reason) select key_id, now(), :reason from meant
        on conflict (identity) do update set blocked_at = coalesce(i.blocked_at, now()), blocked_reason = :reason
        returning identity
    )
    insert into redis_changes (identity, kind, payload) select identity, 'devices blocked', '{{}}' from blocked
    """  # noqa: S608
)


async def blockable(database: Database | Transaction, chosen: Chosen) -> int:
    """The number of devices that are neither blocked nor revoked."""
    return int((await database.fetch(_COUNT, **asdict(chosen)))[0]["devices"])


async def block(transaction: Transaction, chosen: Chosen, *, reason: str | None, limit: int) -> int:
    """Block devices, and record that Redis must learn of it. Returns their number."""
    return await transaction.execute(_BLOCK, reason=reason, limit=limit, **asdict(chosen))


async def page(
    database: Database, *, q: str, key: str | None, backwards: bool, limit: int, chosen: Chosen | None = None
) -> list[DeviceRow]:
    """Devices whose key id starts with ``q``, by key id, from ``key`` on in the given direction."""
    query, edge = (_BACKWARDS, LAST) if backwards else (_FORWARDS, "")
    edge = edge if key is None else key
    rows = await database.fetch(query, q=q, end=q + LAST, key=edge, limit=limit, **asdict(chosen or Chosen()))
    return [DeviceRow(**row) for row in rows]


async def find(database: Database, key_id: str) -> DeviceRow | None:
    rows = await database.fetch(_FIND, key_id=key_id)
    return DeviceRow(**rows[0]) if rows else None


async def lock(transaction: Transaction, key_id: str) -> DeviceRow | None:
    """Lock a device until the transaction ends."""
    rows = await transaction.fetch(_LOCK, key_id=key_id)
    return DeviceRow(**rows[0]) if rows else None
