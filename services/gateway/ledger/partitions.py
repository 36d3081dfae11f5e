"""The days of the ledger, each a table of its own: made ahead, and dropped when they are old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from shared.stores.postgres import Database, DatabaseUnavailable, Query, Transaction
from shared.stores.postgres_faults import LOCK_NOT_AVAILABLE
from shared.stores.revisions import LOCK_SECONDS

_DAY = timedelta(days=1)
#: Two of the longest periods: no budget is rebuilt from what a user spent before.
_SUMS_KEPT = timedelta(days=62)
#: After this, only rows that come late change an hour.
_OPEN = timedelta(hours=3)
#: Pages of a table that one statement reads: 80,000 rows.
_PAGES_AT_ONCE = 1000

# The default partition has no bound
_PARTITIONS = Query.text(
    """
    select relname as name, cast(substring(pg_get_expr(relpartbound, c.oid) from 'TO .''([^'']+)''') as timestamptz)
        as until
    from pg_inherits join pg_class as c on c.oid = inhrelid
    where inhparent = cast('ledger' as regclass) order by 2
    """
)
_STRAY = Query.text(
    "select distinct cast(admitted_at at time zone 'UTC' as date) as day from ledger_default order by 1"
)
# Writers queue behind a request for a lock, so each request waits for a second only, and is repeated
_PATIENCE = Query.text("set local lock_timeout = '1s'")
_PAUSE = 1.0
_HOLDER = Query.text(
    """
    select format('process %s of %s (%s) has had it since %s', a.pid, a.usename,
        coalesce(nullif(a.application_name, ''), 'no application name'), date_trunc('second', a.xact_start)) as text
    from pg_locks as l join pg_stat_activity as a using (pid)
    where l.granted and a.pid <> pg_backend_pid() and (l.relation = cast('ledger' as regclass)
        or l.relation in (select inhrelid from pg_inherits where inhparent = cast('ledger' as regclass)))
    order by a.xact_start limit 1
    """
)
_CLOSE_DEFAULT = Query.text("lock table ledger_default in access exclusive mode")
_PAGES = Query.text("select pg_relation_size('user_spend') / cast(current_setting('block_size') as int) as pages")
# No index has the day, which every new row would pay for: the table is read once, a part at a time
_FORGET_USERS = Query.text(
    """
    delete from user_spend
    where ctid >= cast(:first as tid) and ctid < cast(:after as tid) and day < :day
    """
)
_FORGET_TOTALS = Query.text("delete from ledger_totals where hour < :before")
_FOLD_HOURS = Query.text(
    """
    with old as (delete from ledger_hours where hour < :before and lane > 0 returning *)
    insert into ledger_hours as kept (hour, service_type, model, purpose, credential, outcome, lane,
        requests, cost_nano, prompt_tokens, completion_tokens)
    select hour, service_type, model, purpose, credential, outcome, 0, sum(requests), sum(cost_nano),
        sum(prompt_tokens), sum(completion_tokens) from old group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6
    on conflict (hour, service_type, model, purpose, credential, outcome, lane) do update set
        requests = kept.requests + excluded.requests, cost_nano = kept.cost_nano + excluded.cost_nano,
        prompt_tokens = kept.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = kept.completion_tokens + excluded.completion_tokens
    """
)


@dataclass(slots=True)
class Kept:
    """The result: days made, rows moved into them, days dropped."""

    made: int = 0
    moved: int = 0
    dropped: int = 0


async def keep(
    database: Database, now: float, *, ahead: int, older_than: int | None, wait: float = LOCK_SECONDS
) -> Kept:
    """Make today, so many days ahead, and the days of stray rows; drop days that ended ``older_than`` days ago.

    The sums that the ledger keeps are tidied up too, so that they stay small. Needs the rights of the tables' owner.

    :param wait: seconds to wait for a table that somebody else holds.
    :raises DatabaseUnavailable: what was done stays done, and it can be run again.
    """
    done = Kept()
    today = datetime.fromtimestamp(now, UTC).date()
    partitions = await database.fetch(_PARTITIONS)
    known = {row["name"] for row in partitions}
    before = next((row["until"] for row in partitions if row["name"] == "ledger_before"), None)
    wanted = {today + number * _DAY for number in range(ahead + 1)}
    wanted |= {row["day"] for row in await database.fetch(_STRAY)}
    for day in sorted(wanted):
        if _name(day) not in known and (before is None or _start(day) >= before):
            done.moved += await _patiently(database, _make(day), wait)
            done.made += 1
    if older_than is not None:
        for row in partitions:
            if row["until"] is not None and row["until"] <= _start(today - older_than * _DAY):
                await _patiently(database, _drop(row["name"]), wait)
                done.dropped += 1
    await _tidy(database, datetime.fromtimestamp(now, UTC))
    return done


def _name(day: date) -> str:
    return f"ledger_{day:%Y%m%d}"


def _start(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


async def _patiently(database: Database, work: Callable[[Transaction], Awaitable[int]], wait: float) -> int:
    """Do work in a transaction, and again while somebody else holds a table that it needs.

    :raises DatabaseUnavailable: who still holds it after ``wait`` seconds, or another reason.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            async with database.transaction() as transaction:
                await transaction.execute(_PATIENCE)
                return await work(transaction)
        except DatabaseUnavailable as failure:
            if failure.sqlstate != LOCK_NOT_AVAILABLE:
                raise
            if time.monotonic() >= deadline:
                held = await database.fetch(_HOLDER)
                holder = held[0]["text"] if held else "nobody any more"
                raise DatabaseUnavailable(f"a table of the ledger is locked: {holder}") from failure
        await asyncio.sleep(_PAUSE)


def _make(day: date) -> Callable[[Transaction], Awaitable[int]]:
    """Work that makes a day, and moves its rows there from the default partition. Returns their number."""
    name, bounds = _name(day), {"start": _start(day), "until": _start(day + _DAY)}

    async def work(transaction: Transaction) -> int:
        await transaction.execute(_CLOSE_DEFAULT)
        await transaction.execute(Query.text(f"create table {name} (like ledger including all)"))
        moved = await transaction.execute(
            Query.text(
                "with moved as (delete from ledger_default where admitted_at >= :start and admitted_at < :until"  # noqa: S608  a date
                f" returning *) insert into {name} select * from moved"
            ),
            **bounds,
        )
        await transaction.execute(
            Query.text(f"alter table ledger attach partition {name} for values from (:start) to (:until)"), **bounds
        )
        return moved

    return work


def _drop(name: str) -> Callable[[Transaction], Awaitable[int]]:
    return lambda transaction: transaction.execute(Query.text(f"drop table {name}"))


async def _tidy(database: Database, now: datetime) -> None:
    oldest = now - _SUMS_KEPT
    pages = (await database.fetch(_PAGES))[0]["pages"]
    for page in range(0, pages, _PAGES_AT_ONCE):
        first, after = f"({page},0)", f"({page + _PAGES_AT_ONCE},0)"
        await database.execute(_FORGET_USERS, day=oldest.date(), first=first, after=after)
    await database.execute(_FORGET_TOTALS, before=oldest)
    await database.execute(_FOLD_HOURS, before=now - _OPEN)
