"""Budgets in PostgreSQL: the ledger, and what a user's state in Redis is built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shared.state.layout import Standing
from shared.state.packed import LedgerRow, period_of
from shared.stores.postgres import Database, Query

_ROWS = """
    select id, request_id, user_id, service_type, model, purpose, prompt_tokens, completion_tokens, cost_nano,
           period_seconds, period_index, outcome, to_timestamp(admitted_ms / 1000.0), to_timestamp(settled_ms / 1000.0)
    from jsonb_to_recordset(cast(:rows as jsonb)) as row (
        id text, request_id text, user_id text, service_type text, model text, purpose text, prompt_tokens bigint,
        completion_tokens bigint, cost_nano bigint, period_seconds int, period_index bigint, outcome text,
        admitted_ms bigint, settled_ms bigint)
"""
_INSERT = f"""
    insert into ledger (id, request_id, user_id, service_type, model, purpose, prompt_tokens, completion_tokens,
        cost_nano, period_seconds, period_index, outcome, admitted_at, settled_at)
    {_ROWS} on conflict (id) do
"""
_WRITE = Query.text(_INSERT + "nothing")
_LOWER = Query.text(
    _INSERT
    + """
    update set prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
        cost_nano = excluded.cost_nano, outcome = excluded.outcome, settled_at = excluded.settled_at
    where ledger.cost_nano > excluded.cost_nano
    """
)
_USER = Query.text(
    """
    with tier as (
        select coalesce((select budget_tier from users where user_id = :user_id), :service_type) as name
    ), span as (
        select name, coalesce(cast(cast(:durations as jsonb) ->> name as int), :seconds) as seconds from tier
    ), period as (
        select *, cast(floor(cast(:now as bigint) / seconds) as bigint) as index from span
    )
    select period.name as tier, period.seconds, period.index,
        (select blocked_at is not null from identities where identity = :identity) as blocked,
        (select revoked_at is not null from devices where key_id = :identity) as revoked,
        (select coalesce(sum(cost_nano), 0) from ledger where user_id = :user_id
            and admitted_at >= to_timestamp(period.index * period.seconds)
            and admitted_at < to_timestamp((period.index + 1) * period.seconds)) as spent,
        greatest(period.index, (select cast(floor(extract(epoch from max(admitted_at)) / period.seconds) as bigint)
            from ledger where user_id = :user_id)) as newest,
        (select jsonb_object_agg(id, cost_nano) from ledger where id = any(:pending)) as written,
        (select jsonb_object_agg(jti, ceil(extract(epoch from expires_at - now()))) from revocations
            where user_id = :user_id and expires_at > now()) as revoked_tokens
    from period
    """
)
_TOTALS = Query.text(
    """
    select shard, sum(cost_nano) as spent from (
        select get_byte(sha256(convert_to(left(user_id, length(user_id) - length(service_type) - 1), 'UTF8')), 0) % 64
            as shard, cost_nano, settled_at
        from ledger
        where service_type = :service_type and id <> all(cast(:pending as text[]))
            and admitted_at >= to_timestamp(:start) and admitted_at < to_timestamp(:end)
    ) as rows
    join unnest(cast(:shards as int[]), cast(:begun as bigint[])) as build (shard, begun) using (shard)
    where settled_at <= to_timestamp(begun / 1000.0)
    group by shard
    """
)
_PRUNE = Query.text(
    """
    delete from ledger where id in (
        select id from ledger where admitted_at < to_timestamp(:before) order by admitted_at limit :batch)
    """
)


async def can_write(database: Database) -> None:
    """Write no row, as readiness does.

    :raises DatabaseUnavailable:
    """
    await database.execute(_WRITE, rows="[]")


@dataclass(frozen=True, slots=True)
class UserRecord:
    """A user as PostgreSQL has it.

    ``newest_index`` is later than ``period_index`` only when the clock went back; ``written`` has the cost of those
    pending rows that are in the ledger already.
    """

    tier: str
    period_seconds: int
    period_index: int
    standing: Standing
    spent_nano: int
    newest_index: int
    written: dict[str, int]
    revoked_tokens: dict[str, int]


class LedgerStorage:
    """Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, rows: Sequence[LedgerRow]) -> None:
        """Rows into the ledger, each at most once; a row that lowers changes one that is there, downwards only."""
        new = [row for row in rows if not row.lowers]
        lower = [row for row in rows if row.lowers]
        if new:
            await self._database.execute(_WRITE, rows=_encode(new))
        if lower:
            await self._database.execute(_LOWER, rows=_encode(lower))

    async def user(
        self,
        user_id: str,
        identity: str,
        service_type: str,
        seconds: int,
        *,
        durations: Mapping[str, int],
        now: int,
        pending: Sequence[str],
    ) -> UserRecord:
        """Tier (the service type when the user has no row), block, and what was spent in the period of ``now``."""
        rows = await self._database.fetch(
            _USER,
            user_id=user_id,
            identity=identity,
            service_type=service_type,
            seconds=seconds,
            durations=msgspec.json.encode(durations).decode(),
            now=now,
            pending=list(pending),
        )
        row = rows[0]
        written = {name: int(cost) for name, cost in (row["written"] or {}).items()}
        tokens = {jti: int(left) for jti, left in (row["revoked_tokens"] or {}).items() if left > 0}
        return UserRecord(
            tier=row["tier"],
            period_seconds=row["seconds"],
            period_index=row["index"],
            standing=Standing.of(blocked=row["blocked"], revoked=row["revoked"]),
            spent_nano=int(row["spent"]),
            newest_index=row["newest"],
            written=written,
            revoked_tokens=tokens,
        )

    async def totals(
        self, service_type: str, start: int, end: int, begun: Mapping[int, int], pending: Sequence[str]
    ) -> dict[int, int]:
        """Nano-dollars spent per shard by requests admitted from ``start`` to ``end``, settled before ``begun`` ms."""
        rows = await self._database.fetch(
            _TOTALS,
            service_type=service_type,
            start=start,
            end=end,
            shards=list(begun),
            begun=list(begun.values()),
            pending=list(pending),
        )
        return {row["shard"]: int(row["spent"]) for row in rows}

    async def prune(self, before: float, batch: int) -> int:
        """Delete up to ``batch`` of the oldest rows admitted before a time; how many there were."""
        return await self._database.execute(_PRUNE, before=before, batch=batch)


def _encode(rows: Sequence[LedgerRow]) -> str:
    values: list[dict[str, Any]] = [
        {
            "id": row.id,
            "user_id": row.user_id,
            **msgspec.structs.asdict(row.details),
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "cost_nano": row.cost_nano,
            "period_index": period_of(row.admitted_ms, row.details.period_seconds),
            "outcome": row.outcome,
            "admitted_ms": row.admitted_ms,
            "settled_ms": row.settled_ms,
        }
        for row in rows
    ]
    return msgspec.json.encode(values).decode()
