"""The sums that the ledger keeps of itself: exact for any writers, any number of writes, in any order."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from hypothesis import HealthCheck, given, settings, strategies as st
from msgspec.structs import replace

from services.gateway.ledger.storage import LedgerStorage
from shared.domain.identity import Credential, shard
from shared.state.packed import Details, LedgerRow
from shared.stores import migrate
from shared.stores.postgres import Database
from tests.support.sql import sql

HOUR = 3_600_000
START = 1_700_000_000_000


def made(number: int, cost: int, **changes: Any) -> LedgerRow:
    """A row of one of 20 users of two service types, on one of two days."""
    user, kind = number % 20, ("ai", "memories")[number % 2]
    values: dict[str, Any] = {
        "id": f"id{number:05d}",
        "user_id": f"{user:032x}:{kind}",
        "cost_nano": cost,
        "admitted_ms": START + number % 7 * 5 * HOUR,
        "prompt_tokens": number,
        "completion_tokens": 2 * number,
        "outcome": "success",
        "details": Details("r", kind, f"model{number % 3}", "chat", 86_400),
        "settled_ms": START + number,
    }
    return LedgerRow(**{**values, **changes})


def sums(url: str) -> list[list[tuple[Any, ...]]]:
    """What is kept, per user and day, per shard and hour, per hour and kind of request."""
    found = []
    for statement in (
        "select user_id, day, spent_nano from user_spend",
        "select service_type, hour, shard, sum(spent_nano) from ledger_totals group by 1, 2, 3",
        "select hour, service_type, model, purpose, outcome, sum(requests), sum(cost_nano), sum(prompt_tokens),"
        " sum(completion_tokens) from ledger_hours group by 1, 2, 3, 4, 5 having sum(requests) <> 0",
    ):
        found.append(sorted(sql(url, statement)))
    return found


def summed_up(url: str) -> list[list[tuple[Any, ...]]]:
    """The same from the ledger's rows."""
    found = []
    for statement in (
        "select user_id, cast(admitted_at at time zone 'UTC' as date), sum(cost_nano) from ledger group by 1, 2",
        "select service_type, date_trunc('hour', admitted_at), user_id, sum(cost_nano) from ledger group by 1, 2, 3",
        "select date_trunc('hour', admitted_at), service_type, model, purpose, outcome, count(*), sum(cost_nano),"
        " sum(prompt_tokens), sum(completion_tokens) from ledger group by 1, 2, 3, 4, 5",
    ):
        found.append(sorted(sql(url, statement)))
    shards: dict[tuple[Any, ...], Any] = {}
    for kind, hour, user, cost in found[1]:
        key = kind, hour, shard(user.rpartition(":")[0])
        shards[key] = shards.get(key, 0) + cost
    return [found[0], sorted((*key, cost) for key, cost in shards.items()), found[2]]


async def test_the_sums_are_exact_under_writers_that_write_the_same_rows_at_once(postgres_url: str) -> None:
    """Each row is written by two or three of four writers, in any order; every fifth was reaped and is lowered."""
    rows = [made(number, 1000 + number, outcome="success" if number % 5 else "expired") for number in range(600)]
    lowered = [replace(row, lowers=True, cost_nano=100, outcome="abort") for row in rows if row.outcome == "expired"]
    dice = random.Random(3)

    async def write(database: Database, mine: list[LedgerRow]) -> None:
        dice.shuffle(mine)
        for at in range(0, len(mine), 40):
            await LedgerStorage(database).write(mine[at : at + 40])

    async with Database.connect(postgres_url, max_size=4, timeout=30) as database:
        shares = [[row for row in rows if (row.prompt_tokens + writer) % 4 != 0] for writer in range(4)]
        await asyncio.gather(*(write(database, share + lowered) for share in shares))
        assert sql(postgres_url, "select count(*) from ledger") == [(600,)]
        found = sums(postgres_url)
        assert found == summed_up(postgres_url)
        assert (
            sum(row[-1] for row in found[0]) == sum(row.cost_nano for row in rows if row.outcome == "success") + 12_000
        )


async def test_a_row_that_is_written_twice_or_lowered_upwards_changes_no_sum(postgres_url: str) -> None:
    row = made(1, 500)
    async with Database.connect(postgres_url) as database:
        storage = LedgerStorage(database)
        await storage.write([row])
        await storage.write([replace(row, cost_nano=900), replace(row, cost_nano=700, lowers=True)])
        assert [one[-1] for one in sums(postgres_url)[0]] == [500]
        await storage.write([replace(row, cost_nano=300, lowers=True)])
        await storage.write([replace(row, cost_nano=300, lowers=True)])
        assert [one[-1] for one in sums(postgres_url)[0]] == [300]
        assert sums(postgres_url) == summed_up(postgres_url)


def test_a_ledger_that_was_there_before_is_summed_up(empty_postgres_url: str) -> None:
    """Of the hours that auth has summed up already, its figures are taken."""
    url = empty_postgres_url
    migrate.upgrade(url, "0004")
    sql(
        url,
        "insert into ledger select n, 'r', 'u' || n % 7 || ':ai', 'ai', 'm', 'chat', 1, 2, n, 2592000, 0, 'success',"
        " now(), now() from generate_series(1, 1000) n;"
        "insert into usage_hours values (date_trunc('hour', now() - interval '5 hours'), 'ai', 'error', 3, 4, 5, 6)",
    )
    migrate.upgrade(url)
    spent, totals, hours = sums(url)
    assert [spent, totals] == summed_up(url)[:2]
    assert [row[2:] for row in hours] == [
        ("unknown", "unknown", "error", 3, 4, 5, 6),
        ("m", "chat", "success", 1000, 500_500, 1000, 2000),
    ]
    migrate.downgrade(url, "0004")
    sql(url, "update ledger set cost_nano = 0; insert into ledger select * from ledger where false")


def test_a_period_that_began_before_a_longer_one_is_summed_up_from_its_beginning(empty_postgres_url: str) -> None:
    """Periods of 7 and 30 days are like that on many days; here they are two lengths that are so today."""
    url, today = empty_postgres_url, int(time.time() / 86_400)
    short, long = next((few, many) for many in range(3, 31) for few in range(2, many) if today % few > today % many)
    migrate.upgrade(url, "0004")
    sql(
        url,
        "insert into ledger select days || 'd' || n, 'r', 'u' || days || ':ai', 'ai', 'm', 'chat', 1, 2, 1,"
        " days * 86400, 0, 'success', now() - n * interval '1 day', now()"
        f" from unnest(array[{short}, {long}]) days, generate_series(0, 30) n",
    )
    migrate.upgrade(url)
    spent = sql(
        url,
        f"select user_id, sum(spent_nano) from user_spend where user_id = 'u{short}:ai'"
        f" and day >= date '1970-01-01' + {today // short * short} group by 1",
    )
    assert spent == [(f"u{short}:ai", today % short + 1)]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(Credential), data=st.data())
def test_the_credential_of_every_identity_is_known(postgres_url: str, kind: Credential, data: st.DataObject) -> None:
    identity = data.draw(st.from_regex(kind.identity, fullmatch=True))
    known = sql(postgres_url, f"select credential_of('{identity}:ai'), credential_of('x{identity}:ai')")
    assert known == [(Credential.of(identity), "other")]
