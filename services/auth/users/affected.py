"""The users whom another row of service types would affect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.domain.service_types import ServiceType
from shared.stores.postgres import Database, Query


@dataclass(frozen=True, slots=True)
class Affected:
    """The number of users that have a row's money and rates, and of those who have spent more than its budget."""

    users: int
    over: int


# As in the gateways, a tier without a row counts as the user's own service type, an exception's money beside the budget
_AFFECTED = """
    select count(*) as users, count(*) filter (
        where spent > cast(:budget as bigint) + coalesce(e.extra_nano, 0)) as over
    from users u
    left join exceptions e on e.user_id = u.user_id and e.ends_at > now()
    left join ({spent}) s on s.user_id = u.user_id
    where u.budget_tier = :name or (u.service_type = :name and u.budget_tier <> all(cast(:names as text[])))
"""
_DAYS = """
    select user_id, sum(spent_nano) as spent from user_spend
    where day >= date '1970-01-01' + cast(:start / 86400 as int)
        and day < date '1970-01-01' + cast(:until / 86400 as int)
    group by user_id
"""
_HOURS = """
    select user_id, sum(cost_nano) as spent from ledger
    where admitted_at >= to_timestamp(:start) and admitted_at < to_timestamp(:until) group by user_id
"""
_BY_DAYS, _BY_HOURS = (Query.text(_AFFECTED.format(spent=spent)) for spent in (_DAYS, _HOURS))


async def affected(database: Database, row: ServiceType, rows: Mapping[str, ServiceType], now: float) -> Affected:
    """Count the users with the money and rates of a row, and those who are over its budget in its current period.

    :param rows: the table that the row is of.
    """
    seconds = row.duration_seconds
    start = int(now) // seconds * seconds
    found = await database.fetch(
        _BY_DAYS if seconds % 86_400 == 0 else _BY_HOURS,
        name=row.name,
        names=list(rows),
        budget=row.max_budget_nano,
        start=start,
        until=start + seconds,
    )
    return Affected(**found[0])
