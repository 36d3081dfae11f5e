"""The comparison of the ledger with the counters and with LiteLLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec

from shared.domain.money import NANO
from shared.domain.service_types import ServiceTypes
from shared.state.decisions import read_users
from shared.state.layout import SHARD_KEYS
from shared.state.packed import LedgerRow
from shared.stores.postgres import Database, Query
from shared.stores.redis import Client

_BATCH = 500
#: USD per user id that LiteLLM counted on the UTC days from the first to the second, both included.
LiteLLMSpend = Callable[[Sequence[str], date, date], Awaitable[Mapping[str, Decimal]]]

_SPENT = Query.text(
    """
    with page as (
        select distinct user_id from user_spend
        where user_id > :after and day >= to_timestamp(:since) at time zone 'UTC' - interval '1 day'
            and (cast(:users as text[]) is null or user_id = any(:users))
        order by 1 limit :batch
    ), timed as (
        select page.user_id, coalesce(
            cast(cast(:durations as jsonb) ->> budget_tier as int),
            cast(cast(:durations as jsonb) ->> split_part(page.user_id, ':', 2) as int)) as seconds
        from page left join users on users.user_id = page.user_id
    ), begun as (
        select *, to_timestamp(floor(cast(:now as bigint) / seconds) * seconds) as start from timed
    )
    select user_id, coalesce(case when seconds % 86400 = 0
            then (select sum(spent_nano) from user_spend where user_id = begun.user_id
                and day >= cast(start at time zone 'UTC' as date))
            else (select sum(cost_nano) from ledger where user_id = begun.user_id and admitted_at >= start)
            end, 0) as period,
        coalesce((select sum(spent_nano) from user_spend where user_id = begun.user_id
            and day >= cast(to_timestamp(:day) at time zone 'UTC' as date)), 0) as days
    from begun order by user_id
    """
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A user on whom two books disagree, in nano-dollars. ``kind``: ``counter`` (Redis) or ``litellm``."""

    user_id: str
    kind: str
    ledger_nano: int
    other_nano: int

    @property
    def likely_cause(self) -> str:
        """The usual cause of such a difference, for operators."""
        if self.kind == "litellm":
            return "rows are missing (Redis lost data before they were written), or somebody else uses this customer"
        if self.other_nano > self.ledger_nano:
            return "Redis counts what the ledger lacks: rows were lost; right again with the next period"
        return "Redis lost part of the count: right again once the user is rebuilt, at the latest with the next period"


async def differences(
    database: Database,
    redis: Client,
    service_types: ServiceTypes,
    litellm: LiteLLMSpend | None,
    *,
    now: Callable[[], float],
    settle: float = 2.0,
) -> list[Difference]:
    """The differences that still exist after ``settle`` seconds, since rows may be on their way.

    A counter must be the ledger's sum of the current period. LiteLLM counts late, and only requests that it saw to
    their end, so it differs only if it counts *more* than the ledger, on this UTC day and the one before.

    :raises DatabaseUnavailable, RedisError: and what ``litellm`` raises.
    """
    first = [one async for one in _compare(database, redis, service_types, litellm, now())]
    if not first:
        return []
    await asyncio.sleep(settle)
    seen = {(one.user_id, one.kind) for one in first}
    users = sorted({one.user_id for one in first})
    again = [one async for one in _compare(database, redis, service_types, litellm, now(), users)]
    return [one for one in again if (one.user_id, one.kind) in seen]


async def _compare(
    database: Database,
    redis: Client,
    service_types: ServiceTypes,
    litellm: LiteLLMSpend | None,
    now: float,
    users: Sequence[str] | None = None,
) -> AsyncIterator[Difference]:
    """Page by page, so that any number of users fits.

    :param users: none but these.
    """
    durations = {name: row.duration_seconds for name, row in service_types.by_name.items()}
    yesterday = (int(now) // 86_400 - 1) * 86_400
    waiting = await _outbox(redis)
    after = ""
    while rows := await database.fetch(
        _SPENT,
        durations=msgspec.json.encode(durations).decode(),
        since=min(yesterday, now - max(durations.values())),
        now=int(now),
        day=yesterday,
        after=after,
        users=users,
        batch=_BATCH,
    ):
        after = rows[-1]["user_id"]
        ids = [row["user_id"] for row in rows]
        for row, state in zip(rows, await read_users(redis, ids), strict=True):
            user_id, ledger = row["user_id"], int(row["period"])
            if state is not None and state.spent_nano != ledger + waiting.get(user_id, 0):
                yield Difference(user_id, "counter", ledger, state.spent_nano)
        if litellm is None:
            continue
        counted = await litellm(ids, *(datetime.fromtimestamp(at, UTC).date() for at in (yesterday, now)))
        for row in rows:
            ledger, other = int(row["days"]), int(counted.get(row["user_id"], Decimal(0)) * NANO)
            if other > ledger + waiting.get(row["user_id"], 0):
                yield Difference(row["user_id"], "litellm", ledger, other)


async def _outbox(redis: Client) -> dict[str, int]:
    """Nano-dollars per user of rows that are not in the ledger yet, or not acknowledged."""
    waiting: dict[str, int] = {}
    for shard in SHARD_KEYS:
        call: Any = redis.hgetall(shard.outbox)  # typed for both of redis-py's clients
        entries: dict[bytes, bytes] = await call
        for name, entry in entries.items():
            row = LedgerRow.parse(name.decode(), entry.decode())
            waiting[row.user_id] = waiting.get(row.user_id, 0) + row.cost_nano
    return waiting
