"""The database behind ``Database``: its errors, its URLs, and its reconnections."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import uvloop
from psycopg2.extensions import parse_dsn

from services.local.postgres import PostgresServer
from services.local.process import free_port
from shared.stores import postgres_places
from shared.stores.postgres import Database, DatabaseUnavailable, Query
from tests.support.sql import sql

ONE = Query.text("select 1 as one")
PID = Query.text("select pg_backend_pid() as pid")
END = Query.text("select pg_terminate_backend(:pid)")


@pytest.mark.parametrize(
    ("statement", "sqlstate"),
    [
        ("select * from no_such_table", "42P01"),
        ("select no_such_column from ledger", "42703"),
        ("select pg_sleep(10)", "57014"),
        ("select * from pg_authid", "42501"),
        ("update ledger set cost_nano = 0", "25006"),
    ],
)
async def test_a_state_of_the_server_is_unavailability(empty_postgres_url: str, statement: str, sqlstate: str) -> None:
    sql(
        empty_postgres_url,
        "create table ledger (cost_nano bigint)",
        "drop role if exists weak",
        "create role weak login",
        "alter role weak set statement_timeout = '200ms'",
        f"alter role weak set default_transaction_read_only = {'on' if sqlstate == '25006' else 'off'}",
        "grant select, update on ledger to weak",
    )
    url = empty_postgres_url.replace("mlpa@", "weak@")
    async with Database.connect(url) as database:
        with pytest.raises(DatabaseUnavailable) as caught:
            await database.execute(Query.text(statement))
        assert caught.value.sqlstate == sqlstate
        assert caught.value.headers["Retry-After"] == "1"
        assert database.state.reason == caught.value.reason
        assert sqlstate in caught.value.reason
        assert "ledger" not in caught.value.reason
        async with Database.connect(url) as other:
            with pytest.raises(DatabaseUnavailable):
                async with other.transaction() as transaction:
                    await transaction.execute(Query.text(statement))
    sql(empty_postgres_url, "drop owned by weak", "drop role weak")


@pytest.mark.parametrize("statement", ["select 1 / 0", "select 'a'::int", "selekt 1", "select 1 where 1"])
async def test_a_fault_of_the_statement_is_not(postgres_url: str, statement: str) -> None:
    async with Database.connect(postgres_url) as database:
        with pytest.raises(psycopg2.Error):
            await database.fetch(Query.text(statement))
        assert database.state.reason is None


@pytest.fixture(scope="module")
def two_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("two")
        first, second = (
            stack.enter_context(PostgresServer(folder / name, free_port(), durable=False)) for name in ("a", "b")
        )
        yield first, second


def both(first: int, second: int, options: str = "") -> str:
    return f"postgresql://mlpa@127.0.0.1:{first},localhost:{second}/postgres?connect_timeout=2{options}"


def test_connections_that_are_reset_while_they_are_made_leave_the_loop_whole() -> None:
    """uvloop must be able to watch the next sockets of the same numbers, whoever opens them."""
    uvloop.run(_lose_connections())


async def _lose_connections() -> None:
    def lose() -> None:
        while True:
            try:
                peer, _ = resets.accept()
            except OSError:
                return
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as resets, socket.create_server(("127.0.0.1", 0)) as good:
        losing = asyncio.create_task(asyncio.to_thread(lose))
        for _ in range(60):
            async with Database.connect(f"postgresql://mlpa@127.0.0.1:{resets.getsockname()[1]}/postgres") as database:
                asked = await asyncio.gather(
                    *(database.fetch(Query.text("select 1")) for _ in range(5)), return_exceptions=True
                )
            assert all(isinstance(one, DatabaseUnavailable) for one in asked)
            with ExitStack() as stack:
                for _ in range(20):
                    other = stack.enter_context(socket.socket())
                    other.setblocking(False)
                    await loop.sock_connect(other, good.getsockname())
                    stack.enter_context(good.accept()[0])
        resets.shutdown(socket.SHUT_RDWR)
        await losing


async def test_the_next_host_of_the_url_serves_when_one_does_not(
    two_servers: tuple[PostgresServer, PostgresServer],
) -> None:
    first, second = two_servers
    port = Query.text("select inet_server_port() as port")
    async with Database.connect(both(first.port, second.port)) as database:
        assert (await database.fetch(port))[0]["port"] == first.port
        first.process.kill()
        assert (await database.fetch(port))[0]["port"] == second.port
        first.start()
        assert (await database.fetch(port))[0]["port"] == second.port, "it stays where it is served"
    async with Database.connect(both(free_port(), second.port)) as database:
        assert (await database.fetch(port))[0]["port"] == second.port


async def is_written_to(database: Database) -> bool:
    try:
        await database.execute(Query.text("create table if not exists made (n int)"))
    except DatabaseUnavailable:
        return False
    return True


async def test_a_demoted_server_is_left_for_one_that_can_be_written_to(
    two_servers: tuple[PostgresServer, PostgresServer],
) -> None:
    first, second = two_servers
    port = Query.text("select inet_server_port() as port")
    async with Database.connect(both(first.port, second.port, "&target_session_attrs=read-write")) as database:
        assert (await database.fetch(port))[0]["port"] == first.port
        sql(first.url(), "alter system set default_transaction_read_only = on", "select pg_reload_conf()")
        try:
            deadline = time.monotonic() + 5
            while not await is_written_to(database) or (await database.fetch(port))[0]["port"] != second.port:
                assert time.monotonic() < deadline
        finally:
            sql(
                first.url(),
                "set default_transaction_read_only = off",
                "alter system reset default_transaction_read_only",
                "select pg_reload_conf()",
            )


async def test_reads_survive_a_restart_of_the_server(own_postgres: PostgresServer) -> None:
    async with Database.connect(own_postgres.url()) as database:
        await asyncio.gather(*(database.fetch(ONE) for _ in range(5)))
        await asyncio.to_thread(own_postgres.kill)
        await asyncio.to_thread(own_postgres.start)
        assert await asyncio.gather(*(database.fetch(ONE) for _ in range(5))) == [[{"one": 1}]] * 5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("@127.0.0.1:1/", "Connection refused"),
        ("@no-such-host.invalid:5432/", "could not look up 'no-such-host.invalid'"),
        ("/no_such_database", 'database "no_such_database" does not exist'),
        ("nobody:hunter2@", 'role "nobody" does not exist'),
        ("?sslmode=require", "server does not support SSL, but SSL was required"),
    ],
)
async def test_the_reason_of_a_failed_connection_is_named(
    postgres_server: PostgresServer, change: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres_server.url()
    place = f"@127.0.0.1:{postgres_server.port}/"
    if change.startswith("@"):
        url = url.replace(place, change)
    elif change.startswith("/"):
        url = url.replace("/postgres", change)
    elif change.startswith("?"):
        url += change
    else:
        url = url.replace("mlpa@", change)
    async with Database.connect(url) as database:
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable) as caught:
                await database.fetch(ONE)
            assert expected in caught.value.reason
            assert "hunter2" not in caught.value.reason
    assert capsys.readouterr().out.count("dependency_out") == 1


async def test_a_wrong_password_is_named_and_not_shown(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "data", free_port(), durable=False, password="right") as server:
        async with Database.connect(server.url().replace(":right@", ":hunter2@")) as database:
            with pytest.raises(DatabaseUnavailable, match="unavailable") as caught:
                await database.fetch(ONE)
        assert "password authentication failed" in caught.value.reason
        assert "hunter2" not in caught.value.reason


async def test_a_connection_beyond_descriptor_1023_fails_at_once(own_postgres: PostgresServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("the machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        async with Database.connect(own_postgres.url()) as database, Database.connect(own_postgres.url()) as killer:
            row = await database.fetch_one(PID)
            assert row is not None
            sleeping = asyncio.create_task(database.execute(Query.text("select pg_sleep(30)")))
            while not await killer.fetch(Query.text("select 1 from pg_stat_activity where wait_event = 'PgSleep'")):
                pass
            began = time.monotonic()
            await killer.fetch(END, pid=row["pid"])
            with pytest.raises(DatabaseUnavailable):
                await sleeping
            assert time.monotonic() - began < 1
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_pool_that_waits_longer_tells_the_server(postgres_url: str) -> None:
    setting = Query.text("select current_setting('statement_timeout') as value")
    async with Database.connect(postgres_url, timeout=30) as database:
        assert (await database.fetch(setting))[0]["value"] == "30s"
    async with Database.connect(postgres_url) as database, database.transaction() as transaction:
        assert (await transaction.fetch(setting))[0]["value"] == "2s"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u@h1:1,h2:2/d", [("h1", "1"), ("h2", "2")]),
        ("postgres://u:p%40ss@h1,h2/d", [("h1", "5432"), ("h2", "5432")]),
        ("postgresql://u@[::1]:6432/d", [("::1", "6432")]),
        ("postgresql://u@/d?host=/run/postgresql", [("/run/postgresql", "5432")]),
        ("postgresql:///d?host=/a,/b&port=1,2", [("/a", "1"), ("/b", "2")]),
        ("postgresql://u@db.example/d?hostaddr=192.0.2.7&sslmode=verify-full", [("db.example", "5432")]),
    ],
)
async def test_each_host_of_a_url_is_a_place_of_its_own(url: str, expected: list[tuple[str, str]]) -> None:
    postgres_places.check(url)
    url = url.replace("h1", "127.0.0.1").replace("h2", "127.0.0.2")
    expected = [(host.replace("h1", "127.0.0.1").replace("h2", "127.0.0.2"), port) for host, port in expected]
    places = [parse_dsn(place) for place in await postgres_places.resolve(url)]
    assert [(place["host"], place["port"]) for place in places] == expected
    assert all(place["dbname"] == "d" for place in places)
    assert all(place["hostaddr"] for place in places if not place["host"].startswith("/"))


@pytest.mark.parametrize(
    "url",
    [
        "mysql://h/d",
        "postgresql://u:p/w@h/d",
        "postgresql://u:p@ss@h/d",
        "postgresql://h:port/d",
        "postgresql://h:99999/d",
        "postgresql://h1:1,h2:2,h3/d?port=1,2",
        "postgresql://h/d?target_session_attrs=standby",
        "postgresql://h/d?options=-c%20work_mem%3D1",
        "postgresql://h/d?no_such_option=1",
    ],
)
def test_a_url_that_can_not_work_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|has") as caught:
        postgres_places.check(url)
    assert "p@ss" not in str(caught.value)
    assert "p/w" not in str(caught.value)


@pytest.mark.parametrize(
    ("sql", "given", "expected"),
    [
        ("select cast(:n as int) + :n as found", {"n": 2}, 4),
        ("select :a || :ab as found", {"a": "x", "ab": "y"}, "xy"),
        ("select '7'::int as found", {}, 7),
        (r"select 'u\:ai at 12:30' as found", {}, "u:ai at 12:30"),
        ("select 'a%' like :like as found", {"like": "a_"}, True),
        ("select '%(x)s %%' as found", {}, "%(x)s %%"),
        ("select cast(:list as int[]) as found", {"list": [1, 2]}, [1, 2]),
    ],
)
async def test_parameters_are_passed_by_name(
    database: Database, sql: str, given: dict[str, Any], expected: object
) -> None:
    assert await database.fetch(Query.text(sql), **given) == [{"found": expected}]
