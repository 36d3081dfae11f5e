"""The SQL of the ledger's sums by hour, and of the users who spent most recently."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shared.stores.postgres import Database, Query


@dataclass(frozen=True, slots=True)
class Hour:
    """Requests admitted in one hour (or one day), of one service type, with one outcome."""

    at: datetime
    service_type: str
    outcome: str
    requests: int
    cost_nano: int
    tokens: int


#: Any fixed number: one process at a time sums up.
_LOCK = Query.text("select pg_try_advisory_xact_lock(6012954214913) as locked")
_LAST = Query.text("select max(hour) as hour from usage_hours")
_FIRST = Query.text(
    "select date_trunc('hour', min(admitted_at), 'UTC') as hour from ledger where admitted_at >= :since"
)
_CLEAR = Query.text("delete from usage_hours where hour >= :start and hour < :until")
_SUM = Query.text(
    """
    insert into usage_hours (hour, service_type, outcome, requests, cost_nano, prompt_tokens, completion_tokens)
    select date_trunc('hour', admitted_at, 'UTC'), service_type, outcome, count(*), sum(cost_nano),
           sum(prompt_tokens), sum(completion_tokens)
    from ledger where admitted_at >= :start and admitted_at < :until group by 1, 2, 3
    """
)
_READ = Query.text(
    """
    select date_trunc(:unit, hour, 'UTC') as at, service_type, outcome, sum(requests)::bigint as requests,
           sum(cost_nano)::bigint as cost_nano, sum(prompt_tokens + completion_tokens)::bigint as tokens
    from usage_hours where hour >= :since group by 1, 2, 3 order by 1
    """
)
_SPENDERS = Query.text(
    """
    select user_id from (
        select user_id, sum(cost_nano) as spent,
               row_number() over (partition by service_type order by sum(cost_nano) desc) as place
        from ledger where admitted_at >= :since group by user_id, service_type) as spender
    where place <= :each and spent > 0
    """
)


async def last_hour(database: Database, since: datetime) -> datetime | None:
    """The hour from which to sum up: the newest one summed up, or the ledger's first; None without rows.

    :raises DatabaseUnavailable: PostgreSQL could not be asked.
    """
    last: datetime | None = (await database.fetch(_LAST))[0]["hour"]
    if last is not None:
        return last
    first: datetime | None = (await database.fetch(_FIRST, since=since))[0]["hour"]
    return first


async def sum_up(database: Database, start: datetime, until: datetime) -> bool:
    """Sum up the hours of a span again; both ends are whole hours.

    :returns: False if another process is summing up.
    :raises DatabaseUnavailable: PostgreSQL could not be asked.
    """
    async with database.transaction() as transaction:
        if not (await transaction.fetch(_LOCK))[0]["locked"]:
            return False
        await transaction.execute(_CLEAR, start=start, until=until)
        await transaction.execute(_SUM, start=start, until=until)
    return True


async def read(database: Database, since: datetime, unit: str) -> list[Hour]:
    """The sums since a time, by ``hour`` or ``day``, oldest first.

    :raises DatabaseUnavailable: PostgreSQL could not be asked.
    """
    return [Hour(**row) for row in await database.fetch(_READ, since=since, unit=unit)]


async def spenders(database: Database, since: datetime, each: int) -> list[str]:
    """The users who spent most since a time, of every service type.

    :raises DatabaseUnavailable: PostgreSQL could not be asked.
    """
    return [row["user_id"] for row in await database.fetch(_SPENDERS, since=since, each=each)]
