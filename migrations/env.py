"""Alembic's environment, for ``mlpa migrate`` and ``alembic upgrade head`` alike.

One migration of a database runs at a time: the others wait for its lock, and find the work done.
"""

from __future__ import annotations

import os

import psycopg2
import sqlalchemy as sa
from alembic import context

from migrations import grants
from shared.stores.migrate import APPLICATION, locked
from shared.stores.revisions import LOCK_SECONDS

#: No statement of a migration waits longer than this for a table that requests use: it fails, and can be run again.
LOCK_TIMEOUT = "5s"


def url() -> str:
    """The database of the caller's configuration, of ``-x url=``, or of ``DATABASE_URL``."""
    given = context.config.attributes.get("url") or context.get_x_argument(as_dictionary=True).get("url")
    return str(given or os.environ["DATABASE_URL"])


def run_online() -> None:
    engine = sa.create_engine(
        "postgresql+psycopg2://",
        # libpq reads the URL, as it does for the services: several hosts, TLS, sockets
        creator=lambda: psycopg2.connect(url(), connect_timeout=5, application_name=APPLICATION),
        poolclass=sa.pool.NullPool,
    )

    @sa.event.listens_for(engine, "begin")
    def bound(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"set local lock_timeout = '{LOCK_TIMEOUT}'; set local statement_timeout = 0")

    with locked(url(), context.config.attributes.get("wait", LOCK_SECONDS)), engine.connect() as connection:
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
        grants.apply(connection)
        connection.commit()
    engine.dispose()


if context.is_offline_mode():
    # psycopg2's own style of parameters would write each % twice
    context.configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
        for statement in grants.script():
            context.execute(statement)
else:
    run_online()
