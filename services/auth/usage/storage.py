"""The SQL of the sums that the ledger keeps: by hour, and of the users who spent most recently.

Every function raises ``DatabaseUnavailable``.
"""

from __future__ import annotations

from collections.abc import Mapping
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
# Each part keeps the first rows of one scan, and sorts no more: of ten million users too, within seconds
_SPENDERS = Query.text(
    """
    (select user_id from user_spend where day >= :since and spent_nano > 0 order by spent_nano desc limit :each)
    union
    (select user_id from user_spend where day >= :since and spent_nano > 0 order by spent_nano / coalesce(
        (cast(:budgets as float8[]))[array_position(cast(:types as text[]), split_part(user_id, ':', 2))],
        'infinity') desc limit :each)
    """
)


async def read(database: Database, since: datetime, unit: str) -> list[Hour]:
    """The sums since a time, by ``hour`` or ``day``, oldest first."""
    return [Hour(**row) for row in await database.fetch(_READ, since=since, unit=unit)]


async def spenders(database: Database, since: date, each: int, budgets: Mapping[str, int]) -> list[str]:
    """The users who spent most on a UTC day since then, and those who spent most of their budget.

    :param budgets: nano-dollars by service type.
    """
    given = {"types": list(budgets), "budgets": [float(budget) or None for budget in budgets.values()]}
    return [row["user_id"] for row in await database.fetch(_SPENDERS, since=since, each=each, **given)]
