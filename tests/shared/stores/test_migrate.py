"""Migrations: one at a time, undone, looked at, and checked by readiness."""

from __future__ import annotations

import os
import subprocess
import sys

import psycopg2
import pytest
from click.testing import CliRunner
from sqlalchemy.exc import InternalError

from services.auth.users import storage
from services.cli.commands import cli
from services.local.postgres import binaries
from services.local.process import Account
from shared.service.health import CheckFailed
from shared.stores import migrate
from shared.stores.postgres import Database, DatabaseUnavailable
from shared.stores.revisions import revisions
from shared.stores.schema_check import PostgresCheck
from tests.support.sql import sql

INDEXES = "select indexname from pg_indexes where schemaname = 'public' order by indexname"
# Each concurrent build of an index fails once, after it, as if its connection had ended
INTERRUPT = """
    create schema interrupted;
    create table interrupted.once (query text primary key);
    create function interrupted.once() returns event_trigger language plpgsql as $$ begin
        if current_query() like '%CONCURRENTLY%' and not exists (
            select from interrupted.once where query = current_query()) then
            raise exception 'interrupted: %', current_query();
        end if;
    end $$;
    create event trigger interrupt on ddl_command_end when tag in ('CREATE INDEX') execute function interrupted.once();
"""
ROUTINES = "select proname, prosrc from pg_proc where pronamespace = 'public'::regnamespace order by proname"


def test_two_at_once_migrate_a_database_once(empty_postgres_url: str) -> None:
    argv = (sys.executable, "-m", "services.cli.main", "migrate")
    environment = {**os.environ, "DATABASE_URL": empty_postgres_url}
    processes = [subprocess.Popen(argv, env=environment) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert migrate.current(empty_postgres_url) == revisions()[-1]


def test_a_migration_that_waits_in_vain_names_the_holder(empty_postgres_url: str) -> None:
    with psycopg2.connect(empty_postgres_url, application_name="somebody") as holder, holder.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s), pg_backend_pid()", (migrate.LOCK,))
        pid = cursor.fetchall()[0][1]
        with pytest.raises(migrate.MigrationRefused, match=rf"process {pid} of mlpa from 127\.0\.0\.1 \(somebody\)"):
            migrate.upgrade(empty_postgres_url, wait=0.1)
    holder.close()
    assert migrate.current(empty_postgres_url) is None
    migrate.upgrade(empty_postgres_url, wait=0.1)


def test_each_revision_can_be_undone_and_made_again(empty_postgres_url: str) -> None:
    migrate.upgrade(empty_postgres_url)
    before = sql(empty_postgres_url, INDEXES)
    for revision in reversed(revisions()[:-1]):
        migrate.downgrade(empty_postgres_url, "-1")
        assert migrate.current(empty_postgres_url) == revision
    migrate.upgrade(empty_postgres_url)
    assert sql(empty_postgres_url, INDEXES) == before


def test_an_index_that_was_left_unfinished_is_made_again(empty_postgres_url: str) -> None:
    migrate.upgrade(empty_postgres_url, "0001")
    sql(
        empty_postgres_url,
        "create index users_created on users (created_at, user_id)",
        "update pg_index set indisvalid = false where indexrelid = 'users_created'::regclass",
    )
    migrate.upgrade(empty_postgres_url)
    assert not sql(empty_postgres_url, "select 1 from pg_index where not indisvalid")


def test_a_migration_that_is_interrupted_at_any_concurrent_index_can_be_run_again(empty_postgres_url: str) -> None:
    connection = psycopg2.connect(empty_postgres_url)
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute(INTERRUPT)
    interrupted = 0
    while True:
        try:
            migrate.upgrade(empty_postgres_url)
            break
        except InternalError as error:
            cursor.execute("insert into interrupted.once values (%s)", (error.statement,))
            interrupted += 1
    connection.close()
    assert migrate.current(empty_postgres_url) == revisions()[-1]
    assert interrupted >= 12
    assert not sql(empty_postgres_url, "select 1 from pg_index where not indisvalid")


def test_tables_that_an_interrupted_migration_left_behind_are_taken_as_they_are(empty_postgres_url: str) -> None:
    for made, noted in (("0002", "0001"), ("0011", "0010")):
        migrate.upgrade(empty_postgres_url, made)
        sql(empty_postgres_url, "update alembic_version set version_num = %(noted)s", noted=noted)
    migrate.upgrade(empty_postgres_url)
    assert migrate.current(empty_postgres_url) == revisions()[-1]


@pytest.fixture
def mlpa(empty_postgres_url: str) -> CliRunner:
    return CliRunner(env={"DATABASE_URL": empty_postgres_url})


def test_the_command_checks_undoes_and_shows(mlpa: CliRunner, empty_postgres_url: str) -> None:
    newest = revisions()[-1]
    checked = mlpa.invoke(cli, ["migrate", "--check"])
    assert (checked.exit_code, checked.output) == (1, f"the database is at no revision, the newest is {newest}\n")
    assert mlpa.invoke(cli, ["migrate"]).exit_code == 0
    assert mlpa.invoke(cli, ["migrate", "--check"]).exit_code == 0
    assert mlpa.invoke(cli, ["migrate", "--down", "1"]).exit_code == 0
    assert migrate.current(empty_postgres_url) == revisions()[-2]
    shown = mlpa.invoke(cli, ["migrate", "--sql"])
    assert shown.exit_code == 0
    assert "CREATE TABLE ledger" in shown.output
    assert "CREATE INDEX CONCURRENTLY" in shown.output
    assert migrate.current(empty_postgres_url) == revisions()[-2]
    assert mlpa.invoke(cli, ["migrate", "--sql", "--down", "1"]).exit_code == 2


def test_the_statements_that_are_shown_make_the_same_schema(mlpa: CliRunner, empty_postgres_url: str) -> None:
    shown = mlpa.invoke(cli, ["migrate", "--sql"]).stdout
    psql = binaries(Account.current()) / "psql"
    argv = (str(psql), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", empty_postgres_url)
    done = subprocess.run(argv, input=shown, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert migrate.current(empty_postgres_url) == revisions()[-1]
    made = sql(empty_postgres_url, ROUTINES), sql(empty_postgres_url, INDEXES)
    migrate.downgrade(empty_postgres_url, "base")
    migrate.upgrade(empty_postgres_url)
    assert made == (sql(empty_postgres_url, ROUTINES), sql(empty_postgres_url, INDEXES))


async def test_an_older_schema_makes_a_service_unavailable(empty_postgres_url: str) -> None:
    async with Database.connect(empty_postgres_url) as database:
        check = PostgresCheck(database, storage.can_write)
        for revision in (None, *revisions()[:-1]):
            if revision is not None:
                migrate.upgrade(empty_postgres_url, revision)
            with pytest.raises(CheckFailed, match=r"^schema$") as caught:
                await check()
            assert caught.value.required
        migrate.upgrade(empty_postgres_url)
        await check()
        sql(empty_postgres_url, "update alembic_version set version_num = '9999'")
        await check()  # a newer schema still serves this code


async def test_a_server_that_is_read_only_fails_the_check(postgres_url: str) -> None:
    async with Database.connect(postgres_url) as database:
        check = PostgresCheck(database, storage.can_write)
        await check()
        sql(
            postgres_url,
            f"alter database {postgres_url.rpartition('/')[2]} set default_transaction_read_only = on",
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'mlpa' and datname = current_database()",
        )
        with pytest.raises(DatabaseUnavailable) as caught:
            await check()
        assert caught.value.reason == "read_only_sql_transaction (SQLSTATE 25006)"
