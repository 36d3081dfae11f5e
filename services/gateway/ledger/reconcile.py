"""Whether ledger, counters and LiteLLM agree on what users spent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec

from shared.domain.money import NANO
from shared.domain.service_types import ServiceTypes
from shared.state.decisions import UserState, read_users
from shared.state.layout import SHARD_KEYS
from shared.state.packed import LedgerRow
from shared.stores.postgres import Database, Query
from shared.stores.redis import Client

_BATCH = 500
#: USD per user id that LiteLLM counted on the UTC days from the first to the second, both included.
LiteLLMSpend = Callable[[Sequence[str], date, date], Awaitable[Mapping[str, Decimal]]]

_SPENT = Query.text(
    """
    with recent as (
        select ledger.user_id, cost_nano, admitted_at, coalesce(
            cast(cast(:durations as jsonb) ->> budget_tier as int),
            cast(cast(:durations as jsonb) ->> ledger.service_type as int)) as seconds
        from ledger left join users on users.user_id = ledger.user_id
        where admitted_at >= to_timestamp(:since)
    )
    select user_id,
        coalesce(sum(cost_nano) filter (
            where admitted_at >= to_timestamp(floor(cast(:now as bigint) / seconds) * seconds)), 0) as period,
        coalesce(sum(cost_nano) filter (where admitted_at >= to_timestamp(:day)), 0) as days
    from recent group by user_id order by user_id
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
        """For people: what most often makes two books differ in this way."""
        if self.kind == "litellm":
            return "rows are missing (Redis lost data before they were written), or somebody else uses this customer"
        if self.other_nano > self.ledger_nano:
            return "Redis counts what the ledger lacks: rows were pruned or lost; right again with the next period"
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
    """What differs now and still does after ``settle`` seconds: rows on their way are not a difference.

    A counter must be the ledger's sum of the current period. LiteLLM counts late, and only what it saw to its end, so
    only that it counts *more* than the ledger, on this UTC day and the one before, is told.

    :raises DatabaseUnavailable, RedisError: and what ``litellm`` raises.
    """
    first = await _compare(database, redis, service_types, litellm, now())
    if not first:
        return []
    await asyncio.sleep(settle)
    seen = {(one.user_id, one.kind) for one in first}
    again = await _compare(database, redis, service_types, litellm, now())
    return [one for one in again if (one.user_id, one.kind) in seen]


async def _compare(
    database: Database, redis: Client, service_types: ServiceTypes, litellm: LiteLLMSpend | None, now: float
) -> list[Difference]:
    durations = {name: row.duration_seconds for name, row in service_types.rows.items()}
    yesterday = (int(now) // 86_400 - 1) * 86_400
    waiting = await _outbox(redis)
    rows = await database.fetch(
        _SPENT,
        durations=msgspec.json.encode(durations).decode(),
        since=min(yesterday, now - max(durations.values())),
        now=int(now),
        day=yesterday,
    )
    found = []
    states: list[UserState | None] = []
    for at in range(0, len(rows), _BATCH):
        states += await read_users(redis, [row["user_id"] for row in rows[at : at + _BATCH]])
    for row, state in zip(rows, states, strict=True):
        user_id, ledger = row["user_id"], int(row["period"])
        if state is not None and state.spent_nano != ledger + waiting.get(user_id, 0):
            found.append(Difference(user_id, "counter", ledger, state.spent_nano))
    if litellm is not None:
        days = [datetime.fromtimestamp(at, UTC).date() for at in (yesterday, now)]
        counted = await litellm([row["user_id"] for row in rows], *days)
        for row in rows:
            ledger, other = int(row["days"]), int(counted.get(row["user_id"], Decimal(0)) * NANO)
            if other > ledger + waiting.get(row["user_id"], 0):
                found.append(Difference(row["user_id"], "litellm", ledger, other))
    return found


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
