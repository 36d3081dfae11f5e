"""The schema of a database, brought to the revision that this code needs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
from alembic import command
from alembic.config import Config

import migrations
from shared.stores.revisions import LOCK_SECONDS

#: Any fixed number: the key of the advisory lock that lets one migration of a database run at a time.
LOCK = 0x4D4C5041
APPLICATION = "mlpa migrate"
_TRY_SECONDS = 0.25

_HOLDER = """
    select a.pid, a.usename, coalesce(host(a.client_addr), 'a local socket'), a.application_name, a.xact_start
    from pg_locks l join pg_stat_activity a using (pid)
    where l.locktype = 'advisory' and l.granted and l.classid = %s and l.objid = %s and l.database =
        (select oid from pg_database where datname = current_database())
"""


class MigrationRefused(Exception):
    """The schema was not changed; the message says why."""


def config(url: str, *, wait: float = LOCK_SECONDS) -> Config:
    """Alembic's configuration for one database (``postgresql://`` URL, read by libpq as the services read it)."""
    folder = Path(migrations.__file__).parent
    settings = Config(str(folder / "alembic.ini"))
    settings.set_main_option("script_location", str(folder))
    settings.attributes.update(url=url, wait=wait)
    return settings


def upgrade(url: str, revision: str = "head", *, wait: float = LOCK_SECONDS) -> None:
    """Upgrade. Any number of processes may do so at once: one does the work, and the others wait for it.

    :param wait: seconds to wait for the others.
    :raises psycopg2.Error, sqlalchemy.exc.DBAPIError: the database could not be asked, or refused.
    :raises MigrationRefused: another migration did not end in time.
    """
    command.upgrade(config(url, wait=wait), revision)


def downgrade(url: str, revision: str, *, wait: float = LOCK_SECONDS) -> None:
    """Go back to an older revision (``-1`` for one step).

    :raises Exception: as ``upgrade``.
    """
    command.downgrade(config(url, wait=wait), revision)


def sql(url: str) -> None:
    """Write the statements of an upgrade from nothing to standard output, and run none."""
    command.upgrade(config(url), "head", sql=True)


def current(url: str) -> str | None:
    """The database's revision; None when it has no schema.

    :raises psycopg2.Error: it could not be asked.
    """
    with _session(url) as cursor:
        cursor.execute("select to_regclass('alembic_version')")
        if cursor.fetchone() == (None,):
            return None
        cursor.execute("select version_num from alembic_version")
        row = cursor.fetchone()
        return str(row[0]) if row else None


@contextlib.contextmanager
def _session(url: str) -> Iterator[Any]:
    connection = psycopg2.connect(url, connect_timeout=5, application_name=APPLICATION)
    try:
        with connection, connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


@contextlib.contextmanager
def locked(url: str, wait: float) -> Iterator[None]:
    """Hold the lock in a transaction of its own, so that neither a pooler nor a crash can leave it behind.

    The migration runs over another connection. This one is idle meanwhile, and holds no snapshot that an index which
    is made concurrently would have to wait for.

    :raises MigrationRefused: another migration did not end within ``wait`` seconds.
    """
    deadline = time.monotonic() + wait
    while True:
        with _session(url) as cursor:
            cursor.execute("set local idle_in_transaction_session_timeout = 0")
            # polled: a waiting statement would hold a snapshot, and the index would wait for that
            cursor.execute("select pg_try_advisory_xact_lock(%s)", (LOCK,))
            if cursor.fetchone() == (True,):
                yield
                return
        if time.monotonic() >= deadline:
            raise MigrationRefused(f"another migration holds the lock after {wait:g} s: {_holder(url)}")
        time.sleep(_TRY_SECONDS)


def _holder(url: str) -> str:
    with _session(url) as cursor:
        cursor.execute(_HOLDER, (LOCK >> 32, LOCK & 0xFFFFFFFF))
        row = cursor.fetchone()
    if row is None:
        return "it has just ended, so try again"
    pid, user, address, application, began = row
    return f"process {pid} of {user} from {address} ({application or 'no application name'}), since {began:%H:%M:%S %Z}"
