"""Loses a database and gets it back from its backups: ``make rehearse``, or with numbers of users and ledger rows.

A PostgreSQL of its own is filled, backed up in both ways (``pg_basebackup`` and the log that ``pg_receivewal`` takes;
``pg_dump``), written to, and killed with its data folder. It prints the rows that came back, and the time of each step.
Run it with production's numbers before you promise a time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from services.local.postgres import PostgresServer, binaries
from services.local.process import Process, Program, free_port
from shared.stores import migrate

DATABASE = "app_attest"
SLOT = "backup"
#: Seconds of writing between the base backup and the loss.
WRITING = 5.0
_COLUMNS = """ledger (id, request_id, user_id, service_type, model, prompt_tokens, completion_tokens, cost_nano,
    period_seconds, period_index, outcome, admitted_at, settled_at)"""
_VALUES = "'ai', 'local/fast', 100, 100, 1000, 86400, extract(epoch from now())::int / 86400, 'success', now(), now()"
_FILL = f"""
    insert into identities (identity) select md5(n::text) from generate_series(1, %(users)s) n;
    insert into users (user_id, identity, service_type, budget_tier)
        select md5(n::text) || ':ai', md5(n::text), 'ai', 'ai' from generate_series(1, %(users)s) n;
    insert into {_COLUMNS}
        select 'filled-' || n, 'filled-' || n, md5((n %% %(users)s + 1)::text) || ':ai', {_VALUES}
        from generate_series(1, %(rows)s) n;
"""  # noqa: S608  ours
_ROW = f"insert into {_COLUMNS} values (%(id)s, %(id)s, md5('1') || ':ai', {_VALUES})"  # noqa: S608  ours


@contextmanager
def timed(step: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{step}: {time.monotonic() - began:.1f} s", flush=True)


def run(server: PostgresServer, program: str, *arguments: str, database: str = DATABASE) -> None:
    """Run one of PostgreSQL's programs against a server."""
    argv = (str(binaries(server.account) / program), *arguments, "-d", server.url(database))
    subprocess.run(argv, check=True)  # noqa: S603  ours


def ask(server: PostgresServer, statement: str) -> Any:
    """The one value that a statement answers."""
    connection = psycopg2.connect(server.url(DATABASE))
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        (found,) = cursor.fetchone() or (None,)
    connection.close()
    return found


def count(server: PostgresServer) -> int:
    return int(ask(server, "select count(*) from ledger"))


def megabytes(folder: Path) -> float:
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file()) / 1e6


def write(server: PostgresServer, seconds: float) -> int:
    """Commit rows one by one for a while. Returns their number."""
    connection, number, until = psycopg2.connect(server.url(DATABASE)), 0, time.monotonic() + seconds
    connection.autocommit = True
    with connection.cursor() as cursor:
        while time.monotonic() < until:
            cursor.execute(_ROW, {"id": f"written-{number}"})
            number += 1
    connection.close()
    return number


def lose(folder: Path, users: int, rows: int) -> int:
    """Fill a server, back it up, write on, and lose it. Returns the number of its rows."""
    server = PostgresServer(folder / "primary" / "data", free_port(), durable=True)
    with server:
        migrate.upgrade(server.create_database(DATABASE))
        connection = psycopg2.connect(server.url(DATABASE))
        with timed(f"filling in {users:,} users and {rows:,} ledger rows"), connection, connection.cursor() as cursor:
            cursor.execute(_FILL, {"users": users, "rows": rows})
        connection.close()
        run(server, "pg_receivewal", "--create-slot", f"--slot={SLOT}", database="postgres")
        program = str(binaries(server.account) / "pg_receivewal")
        options = (f"--slot={SLOT}", f"--directory={folder / 'log'}", "--synchronous")
        argv = (program, *options, "-d", server.url("postgres"))
        receiver = Process(Program("pg_receivewal", argv), folder / "receiver.log")
        receiver.start()
        base = (f"--pgdata={folder / 'base'}", "--checkpoint=fast", "--wal-method=none", "--no-manifest")
        with timed("pg_basebackup"):
            run(server, "pg_basebackup", *base, database="postgres")
        with timed("pg_dump"):
            run(server, "pg_dump", "--format=directory", "--jobs=2", f"--file={folder / 'dump'}")
        sizes = [megabytes(folder / name) for name in ("base", "dump")]
        print("the base backup has {:,.0f} MB, the dump {:,.0f} MB".format(*sizes))
        # As a synchronous standby: no commit is answered before its log is in both places. Otherwise it lags by seconds
        for setting in ("alter system set synchronous_standby_names = 'pg_receivewal'", "select pg_reload_conf()"):
            run(server, "psql", "--quiet", "--no-psqlrc", "--output=/dev/null", "--command", setting)
        written = write(server, WRITING)
        before = count(server)
        server.kill()
        receiver.wait(2)
        receiver.kill()
    shutil.rmtree(server.data)
    print(f"{written:,} rows were committed one by one after the backups; then the server and its data were gone")
    return before


def recover(folder: Path, before: int) -> int:
    """Restore the point in time of the loss. Returns the number of missing rows."""
    data, log = folder / "restored" / "data", folder / "log"
    began = time.monotonic()
    with timed("copying the base backup back"):
        shutil.copytree(folder / "base", data)
        for partial in log.glob("*.partial"):  # the segment that was being written
            partial.rename(partial.with_suffix(""))
        (data / "recovery.signal").touch()
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = 'cp {log}/%f %p'\n")
        data.chmod(0o700)
        server = PostgresServer(folder / "restored" / "none", free_port(), durable=True)
        for path in (folder, log, data, *data.rglob("*"), *log.iterdir()):
            os.chown(path, server.account.uid, server.account.gid)
    server = PostgresServer(data, server.port, durable=True)
    server.ready_seconds = 3600
    with timed("replaying the log"):
        server.start()
        while ask(server, "select pg_is_in_recovery()"):
            time.sleep(0.1)
    lost = before - count(server)
    server.stop()
    print(f"point in time: back after {time.monotonic() - began:.1f} s, {lost} committed rows lost")
    return lost


def restore(folder: Path, before: int) -> None:
    """Restore the dump."""
    with PostgresServer(folder / "other" / "data", free_port(), durable=True) as server:
        server.create_database(DATABASE)
        with timed("pg_restore"):
            run(server, "pg_restore", "--jobs=2", "--no-owner", str(folder / "dump"))
        print(f"dump: {before - count(server)} committed rows lost, all since it was made")


if __name__ == "__main__":
    users, rows = [int(text) for text in sys.argv[1:]] or [100_000, 1_000_000]
    with tempfile.TemporaryDirectory(prefix="mlpa-rehearsal-") as where:
        folder = Path(where)
        folder.chmod(0o755)
        (folder / "log").mkdir()
        before = lose(folder, users, rows)
        lost = recover(folder, before)
        restore(folder, before)
    sys.exit(1 if lost else 0)
