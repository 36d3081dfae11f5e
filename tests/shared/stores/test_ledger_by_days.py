"""The migration that makes a ledger of days out of one table, while both releases write."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from services.cli.ledger import ledger
from services.gateway.ledger.partitions import keep
from services.gateway.ledger.storage import LedgerStorage
from shared.domain.identity import user_id
from shared.state.packed import Details, LedgerRow
from shared.stores import migrate
from shared.stores.postgres import Database, DatabaseUnavailable, Query
from tests.support.sql import sql

DAY = 86_400_000
#: As the release before writes a row.
OLD_INSERT = Query.text(
    "insert into ledger select :id, 'r', :user, 'ai', 'm', 'chat', 1, 2, 3, 86400, 1, 'success', now(), now()"
    " on conflict (id) do nothing"
)
KEPT = "select (select sum(cost_nano) from ledger), (select sum(spent_nano) from user_spend)"


def made(name: str, admitted_ms: int, **changes: Any) -> LedgerRow:
    values: dict[str, Any] = {
        "id": name,
        "user_id": user_id("0" * 32, "ai"),
        "cost_nano": 5,
        "admitted_ms": admitted_ms,
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "outcome": "success",
        "details": Details("r", "ai", "m", "chat", 86_400),
        "settled_ms": admitted_ms,
    }
    return LedgerRow(**{**values, **changes})


async def test_rows_of_both_releases_are_there_once_after_the_way_up_and_back(empty_postgres_url: str) -> None:
    url = empty_postgres_url
    migrate.upgrade(url, "0005")
    async with Database.connect(url) as database:
        storage = LedgerStorage(database)
        await database.execute(OLD_INSERT, id="old1", user="u:ai")
        today = int(sql(url, "select extract(epoch from now())")[0][0]) * 1000
        rows = [made("soon", today + 4 * DAY), made("late", today + 40 * DAY), made("past", 10**12), made("now", today)]
        with pytest.raises(DatabaseUnavailable):
            await storage.write(rows)  # this release before the migration: the rows wait
        migrate.upgrade(url)
        with pytest.raises(DatabaseUnavailable):
            await database.execute(OLD_INSERT, id="old2", user="u:ai")  # and that before, after it
        for _ in range(2):
            await storage.write(rows)
        await storage.write([made("late", today + 40 * DAY, cost_nano=2, lowers=True)])
        day = f"{datetime.fromtimestamp((today + 4 * DAY) / 1000, UTC):%Y%m%d}"
        assert sql(url, "select tableoid::regclass::text, count(*) from ledger group by 1 order by 1") == [
            (f"ledger_{day}", 1),
            ("ledger_before", 3),
            ("ledger_default", 1),
        ]
        assert sql(url, KEPT) == [(20, 20)]
        plan = str(sql(url, "set enable_seqscan = off; explain select 1 from ledger where request_id = 'r'"))
        assert "Seq Scan" not in plan
        migrate.downgrade(url, "0005")
        with pytest.raises(DatabaseUnavailable):
            await storage.write(rows)
        await database.execute(OLD_INSERT, id="old1", user="u:ai")
        await database.execute(OLD_INSERT, id="old3", user="u:ai")
        assert sql(url, "select count(*) from ledger") == [(6,)]
        assert sql(url, KEPT) == [(23, 23)]
        migrate.upgrade(url)
        await storage.write(rows)
        assert sql(url, KEPT) == [(23, 23)]


async def test_days_are_made_ahead_filled_with_stray_rows_and_dropped(postgres_url: str) -> None:
    """With no day made, all rows of new days stray; making the days moves them, and changes no sum."""
    url = postgres_url
    now = datetime.now(UTC)
    old = sql(url, "select relname from pg_class where relname ~ '^ledger_(before$|2)' and relkind = 'r'")
    for (name,) in old:
        sql(url, f"drop table {name}")
    async with Database.connect(url) as database:
        storage, times = (
            LedgerStorage(database),
            [int(now.timestamp() * 1000) + day * DAY for day in (-30, -29, 0, 1, 9)],
        )
        rows = [made(f"row{at}", at) for at in times]
        await storage.write(rows)
        done = await keep(database, now.timestamp(), ahead=3, older_than=None)
        assert (done.made, done.moved, done.dropped) == (7, 5, 0)
        assert sql(url, "select count(*) from ledger_default") == [(0,)]
        await storage.write([replace(row, cost_nano=900) for row in rows])
        await storage.write([replace(rows[0], cost_nano=1, lowers=True)])
        assert sql(url, KEPT) == [(21, 21)]
        again = await keep(database, now.timestamp(), ahead=3, older_than=29)
        assert (again.made, again.moved, again.dropped) == (0, 0, 1)
        assert sql(url, "select (select count(*) from ledger), (select sum(spent_nano) from user_spend)") == [(4, 21)]
        last = await keep(database, now.timestamp() + 33 * 86_400, ahead=1, older_than=2)
        assert (last.made, last.dropped) == (2, 6)
        # of the sums too only what a period may need is left
        await keep(database, now.timestamp() + 80 * 86_400, ahead=1, older_than=2)
        assert sql(url, "select count(*), (select count(*) from ledger_totals) from user_spend") == [(0, 0)]
        assert sql(url, "select sum(requests), max(lane) from ledger_hours") == [(5, 0)]


async def test_old_sums_of_many_users_are_forgotten_in_one_reading_of_the_table(postgres_url: str) -> None:
    now = datetime.now(UTC)
    sql(
        postgres_url,
        "insert into user_spend select 'u' || n, now() - (n % 2) * interval '70 days', 1"
        " from generate_series(1, 250000) n",
    )
    async with Database.connect(postgres_url, timeout=30) as database:
        await keep(database, now.timestamp(), ahead=1, older_than=None)
    assert sql(postgres_url, "select count(*), now()::date - min(day) from user_spend") == [(125_000, 0)]


def test_the_command_makes_and_drops_days(postgres_url: str) -> None:
    runner = CliRunner(env={"DATABASE_URL": postgres_url, "MLPA_DEBUG": "true"})
    done = runner.invoke(ledger, ["partitions", "--ahead", "20"])
    assert (done.exit_code, done.output) == (0, "made 12, moved 0 rows, dropped 0\n")
    assert runner.invoke(ledger, ["partitions"]).output == "made 0, moved 0 rows, dropped 0\n"
    assert runner.invoke(ledger, ["partitions", "--older-than", "1"]).exit_code == 2


def test_a_day_that_somebody_reads_is_dropped_when_they_have_ended_and_else_names_them(postgres_url: str) -> None:
    runner = CliRunner(env={"DATABASE_URL": postgres_url, "MLPA_DEBUG": "true"})
    assert runner.invoke(ledger, ["partitions"]).exit_code == 0
    reader = psycopg2.connect(postgres_url, application_name="a long report")
    with reader.cursor() as cursor:
        cursor.execute("select count(*) from ledger")
    refused = runner.invoke(ledger, ["partitions", "--ahead", "20", "--wait", "0"])
    assert refused.exit_code == 1
    assert f"a table of the ledger is locked: process {reader.info.backend_pid} of " in refused.output
    assert "(a long report) has had it since 2" in refused.output
    end = threading.Timer(0.5, reader.close)
    end.start()
    done = runner.invoke(ledger, ["partitions", "--ahead", "20"])
    end.join()
    assert (done.exit_code, done.output) == (0, "made 12, moved 0 rows, dropped 0\n")
