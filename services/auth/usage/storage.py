"""The SQL of the sums that the ledger keeps: by hour, and of the users who spent most recently."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

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


_READ = Query.text(
    """
    select date_trunc(:unit, hour, 'UTC') as at, service_type, outcome, sum(requests)::bigint as requests,
           sum(cost_nano)::bigint as cost_nano, sum(prompt_tokens + completion_tokens)::bigint as tokens
    from ledger_hours where hour >= :since group by 1, 2, 3 having sum(requests) <> 0 order by 1
    """
)
_SPENDERS = Query.text(
    """
    select user_id from (
        select user_id, sum(spent_nano) as spent,
               row_number() over (partition by split_part(user_id, ':', 2) order by sum(spent_nano) desc) as place
        from user_spend where day >= :since group by user_id) as spender
    where place <= :each and spent > 0
    """
)


async def read(database: Database, since: datetime, unit: str) -> list[Hour]:
    """The sums since a time, by ``hour`` or ``day``, oldest first.

    :raises DatabaseUnavailable: PostgreSQL could not be asked.
    """
    return [Hour(**row) for row in await database.fetch(_READ, since=since, unit=unit)]


async def spenders(database: Database, since: date, each: int) -> list[str]:
    """The users who spent most since the beginning of a UTC day, of every service type.

    :raises DatabaseUnavailable: PostgreSQL could not be asked.
    """
    return [row["user_id"] for row in await database.fetch(_SPENDERS, since=since, each=each)]
