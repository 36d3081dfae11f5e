"""Budgets in PostgreSQL: the ledger, and what a user's state in Redis is built from."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from services.gateway.budget.scripts import UserBuild
from shared.domain.identity import split_user
from shared.domain.service_types import ServiceType
from shared.state.layout import Standing
from shared.state.packed import Excepted, LedgerRow, period_of
from shared.stores.postgres import Database, Query, Transaction

#: The erasure of the identity of ``row``, if it was erased and has not returned. Fingerprints are few.
ERASURE = """
    from erasures where fingerprint = sha256(convert_to(
        left(row.user_id, length(row.user_id) - length(row.service_type) - 1), 'UTF8'))
    and not exists (select from users where users.user_id = row.user_id)
"""
_RENAMED = f"coalesce((select digest || ':' || row.service_type {ERASURE}), user_id) as user_id"
_ROWS = f"""
    select id, request_id, {_RENAMED}, service_type, model, purpose, prompt_tokens, completion_tokens, cost_nano,
           period_seconds, period_index, outcome, to_timestamp(admitted_ms / 1000.0) as admitted_at,
           to_timestamp(settled_ms / 1000.0) as settled_at
    from jsonb_to_recordset(cast(:rows as jsonb)) as row (
        id text, request_id text, user_id text, service_type text, model text, purpose text, prompt_tokens bigint,
        completion_tokens bigint, cost_nano bigint, period_seconds int, period_index bigint, outcome text,
        admitted_ms bigint, settled_ms bigint)
"""  # noqa: S608  ours
#: Rows by id and time of admission, which name the day that a row is in.
_KEYS = """
    (select id, to_timestamp(ms / 1000.0) as at
        from unnest(cast(:ids as text[]), cast(:admitted_ms as bigint[])) as pair (id, ms)) as key
"""
# All writers lock rows in one order, here and in the triggers, so that no two wait for each other
_WRITE = Query.text(
    f"""
    insert into ledger (id, request_id, user_id, service_type, model, purpose, prompt_tokens, completion_tokens,
        cost_nano, period_seconds, period_index, outcome, admitted_at, settled_at)
    {_ROWS} order by id on conflict (id, admitted_at) do nothing
    """
)
_LOWER = Query.text(
    f"""
    with new as materialized ({_ROWS}),
    held as materialized (
        select ledger.id from ledger join new on ledger.id = new.id and ledger.admitted_at = new.admitted_at
        order by 1 for update of ledger)
    update ledger set prompt_tokens = new.prompt_tokens, completion_tokens = new.completion_tokens,
        cost_nano = new.cost_nano, outcome = new.outcome, settled_at = new.settled_at
    from new join held on held.id = new.id
    where ledger.id = new.id and ledger.admitted_at = new.admitted_at and ledger.cost_nano > new.cost_nano
    """  # noqa: S608  ours
)
# Periods of whole days are summed up from the sums of days; the rows of an hour are few
_USER = Query.text(
    f"""
    with tier as (
        select coalesce((select budget_tier from users where user_id = :user_id), :service_type) as name
    ), span as (
        select name, coalesce(cast(cast(:durations as jsonb) ->> name as int), :seconds) as seconds from tier
    ), period as (
        select *, cast(floor(cast(:now as bigint) / seconds) as bigint) as index from span
    )
    select period.name as tier, period.seconds, period.index,
        (select jsonb_build_array(extract(epoch from ends_at), extra_nano, without_rates) from exceptions
            where user_id = :user_id and ends_at > now()) as exception,
        (select blocked_at is not null from identities where identity = :identity) as blocked,
        (select tokens_from_ms / 1000 from identities where identity = :identity) as tokens_from,
        (select revoked_at is not null from devices where key_id = :identity) as revoked,
        case when period.seconds % 86400 = 0
            then (select coalesce(sum(spent_nano), 0) from user_spend where user_id = :user_id
                and day >= date '1970-01-01' + cast(period.index * (period.seconds / 86400) as int)
                and day < date '1970-01-01' + cast((period.index + 1) * (period.seconds / 86400) as int))
            else (select coalesce(sum(cost_nano), 0) from ledger where user_id = :user_id
                and admitted_at >= to_timestamp(period.index * period.seconds)
                and admitted_at < to_timestamp((period.index + 1) * period.seconds))
            end as spent,
        greatest(period.index, (select cast(floor(extract(epoch from max(admitted_at)) / period.seconds) as bigint)
            from ledger where user_id = :user_id
            and admitted_at >= to_timestamp(period.index * period.seconds))) as newest,
        (select jsonb_object_agg(ledger.id, cost_nano)
            from ledger join {_KEYS} on ledger.id = key.id and admitted_at = key.at) as written,
        (select jsonb_object_agg(jti, ceil(extract(epoch from expires_at - now()))) from revocations
            where user_id = :user_id and expires_at > now()) as revoked_tokens,
        exists(select from erasures where fingerprint = sha256(convert_to(:identity, 'UTF8')))
            and not exists(select from users where user_id = :user_id) as erased
    from period
    """  # noqa: S608  ours
)
_WRITTEN = Query.text(
    f"select ledger.id, cost_nano from ledger join {_KEYS} on ledger.id = key.id and admitted_at = key.at"  # noqa: S608
)
_TOTALS = Query.text(
    """
    select shard, sum(spent_nano) as spent from ledger_totals
    where service_type = :service_type and hour >= to_timestamp(:start) and hour < to_timestamp(:end)
    group by shard
    """
)
# Any fixed numbers. Writers of the ledger share the second lock (migration 0005)
_BUILD_ALONE = Query.text("select pg_try_advisory_xact_lock(1296846933) as alone")
_HOLD_WRITERS = Query.text("select pg_advisory_xact_lock(1296846935)")
_PRUNE = Query.text(
    """
    delete from ledger where (id, admitted_at) in (
        select id, admitted_at from ledger where admitted_at < to_timestamp(:before) order by admitted_at limit :batch)
    """
)


async def can_write(database: Database) -> None:
    """Write no row, as readiness does."""
    await database.execute(_WRITE, rows="[]")


@dataclass(frozen=True, slots=True)
class UserRecord:
    """The records that a user's state is built from.

    ``written`` has the cost of those pending rows that are in the ledger already. ``erased``: the user was erased, and
    has not returned.
    """

    build: UserBuild
    written: dict[str, int]
    erased: bool


class LedgerStorage:
    """The ledger in PostgreSQL. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, rows: Sequence[LedgerRow]) -> None:
        """Write rows into the ledger, each at most once. A row that lowers can only lower one that is there.

        In a statement that inserts some and changes others, the triggers would lock sums in no order.
        """
        await self._database.execute(_WRITE, rows=_encode(rows))
        if lower := [row for row in rows if row.lowers]:
            await self._database.execute(_LOWER, rows=_encode(lower))

    async def user(
        self,
        user_id: str,
        service_type: ServiceType,
        *,
        durations: Mapping[str, int],
        now: int,
        pending: Mapping[str, int],
    ) -> UserRecord:
        """Tier (the service type when the user has no row), block, and what was spent in the period of ``now``.

        :param pending: rows that may be in the ledger, with their times of admission in ms.
        """
        rows = await self._database.fetch(
            _USER,
            user_id=user_id,
            identity=split_user(user_id)[0],
            service_type=service_type.name,
            seconds=service_type.duration_seconds,
            durations=msgspec.json.encode(durations).decode(),
            now=now,
            ids=list(pending),
            admitted_ms=list(pending.values()),
        )
        row = rows[0]
        written = {name: int(cost) for name, cost in (row["written"] or {}).items()}
        tokens = {jti: int(left) for jti, left in (row["revoked_tokens"] or {}).items() if left > 0}
        build = UserBuild(
            tier=row["tier"],
            period_seconds=row["seconds"],
            period_index=row["index"],
            spent_nano=int(row["spent"]),
            newest_index=row["newest"],
            standing=Standing.of(blocked=row["blocked"], revoked=row["revoked"]),
            revoked_tokens=tokens,
            exception=Excepted(*row["exception"]).pack() if row["exception"] else "",
            tokens_from=row["tokens_from"] or 0,
        )
        return UserRecord(build, written, row["erased"])

    @contextlib.asynccontextmanager
    async def standing_still(self) -> AsyncIterator[StillLedger | None]:
        """The ledger, locked against writers; None while another process has locked it.

        For moments only: every writer of rows waits.
        """
        async with self._database.transaction() as transaction:
            alone = await transaction.fetch_one(_BUILD_ALONE)
            if alone is None or not alone["alone"]:
                yield None
                return
            await transaction.execute(_HOLD_WRITERS)
            yield StillLedger(transaction)

    async def prune(self, before: float, batch: int) -> int:
        """Delete up to ``batch`` of the oldest rows admitted before a time. Returns their number."""
        return await self._database.execute(_PRUNE, before=before, batch=batch)


class StillLedger:
    """The ledger while nobody writes to it. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def spent(self, service_type: str, start: int, end: int) -> dict[int, int]:
        """Nano-dollars per shard that requests admitted between two whole hours cost, in Unix time, the end excluded.

        They come from the sums that the ledger keeps: it is a read of hours, not of requests.
        """
        rows = await self._transaction.fetch(_TOTALS, service_type=service_type, start=start, end=end)
        return {row["shard"]: int(row["spent"]) for row in rows}

    async def written(self, rows: Sequence[LedgerRow]) -> dict[str, int]:
        """The cost of those rows that are in the ledger, by id."""
        found = await self._transaction.fetch(
            _WRITTEN, ids=[row.id for row in rows], admitted_ms=[row.admitted_ms for row in rows]
        )
        return {row["id"]: int(row["cost_nano"]) for row in found}


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
