"""PostgreSQL behind PgBouncer with its default configuration, in both of its usual modes."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.auth.users import storage
from services.local.postgres import PostgresServer
from services.local.process import Account, Process, Program, free_port
from shared.stores import migrate
from shared.stores.postgres import Database, DatabaseUnavailable, Query
from shared.stores.schema_check import PostgresCheck

PGBOUNCER = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
pytestmark = pytest.mark.skipif(not Path(PGBOUNCER).exists(), reason="pgbouncer (Debian's package) is not installed")

SETTING = Query.text("select current_setting('statement_timeout') as value")


class PgBouncer:
    """A real PgBouncer in front of a server, with as little configuration as possible."""

    def __init__(self, folder: Path, server: PostgresServer, mode: str, *, port: int = 0) -> None:
        self.port = port or free_port()
        account = Account.unprivileged()
        folder.mkdir()
        users = folder / "users.txt"
        users.write_text(f'"mlpa" "{server.password or ""}"\n')
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\n"
            f"pool_mode = {mode}\n"
        )
        for path in (folder, users, settings):
            path.chmod(0o755 if path is folder else 0o644)
        program = Program(name="PgBouncer", argv=(PGBOUNCER, str(settings)), account=account, stop_signal=signal.SIGINT)
        self.process = Process(program, folder.with_suffix(".log"))

    def start(self, url: str) -> None:
        self.process.start()
        for _ in range(200):
            try:
                migrate.current(url)
            except Exception:  # not there yet
                time.sleep(0.02)
            else:
                return
        raise AssertionError("PgBouncer did not start")


@pytest.fixture(params=["session", "transaction"])
def pooled(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, empty_postgres_url: str
) -> Iterator[tuple[PgBouncer, str]]:
    with readable() as folder:
        bouncer = PgBouncer(folder / "pgbouncer", postgres_server, request.param)
        url = empty_postgres_url.replace(f":{postgres_server.port}/", f":{bouncer.port}/")
        bouncer.start(url)
        yield bouncer, url
        bouncer.process.stop()


@contextmanager
def readable() -> Iterator[Path]:
    """A folder that an unprivileged user can enter; pytest's own can't be."""
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


async def test_migrations_requests_and_jobs_go_through(pooled: tuple[PgBouncer, str]) -> None:
    _bouncer, url = pooled
    for _ in range(3):  # a lock that stayed on a pooled connection would stop the second one
        await asyncio.to_thread(migrate.upgrade, url, wait=0)
    await asyncio.to_thread(migrate.downgrade, url, "-1", wait=0)
    await asyncio.to_thread(migrate.upgrade, url, wait=0)
    async with Database.connect(url) as database, Database.connect(url, timeout=30) as reports:
        await PostgresCheck(database, storage.can_write)()
        async with database.transaction() as transaction:
            assert (await transaction.fetch(SETTING))[0]["value"] == "2s"
        assert {row[0]["value"] for row in await asyncio.gather(*(reports.fetch(SETTING) for _ in range(4)))} == {"30s"}
        assert {row[0]["value"] for row in await asyncio.gather(*(database.fetch(SETTING) for _ in range(9)))} == {"0"}


async def test_a_restart_of_the_pooler_costs_no_restart_of_ours(pooled: tuple[PgBouncer, str]) -> None:
    bouncer, url = pooled
    one = Query.text("select 1 as one")
    async with Database.connect(url) as database:
        await asyncio.gather(*(database.fetch(one) for _ in range(5)))
        await asyncio.to_thread(bouncer.process.kill)
        with pytest.raises(DatabaseUnavailable) as caught:
            await database.fetch(one)
        assert "Connection refused" in caught.value.reason
        await asyncio.to_thread(bouncer.start, url)
        assert await database.fetch(one) == [{"one": 1}]
