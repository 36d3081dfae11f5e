"""Alembic's environment: online only, under an advisory lock, so that any number of replicas may start at once."""

from __future__ import annotations

import os

import sqlalchemy as sa
from alembic import context

from shared.schema import metadata

#: Any fixed number: the key of the advisory lock that serialises migrations of one database.
LOCK = 0x4D4C5041


def url() -> str:
    """The database of ``-x url=``, of the caller's configuration, or of ``DATABASE_URL``."""
    given = context.get_x_argument(as_dictionary=True).get("url") or context.config.get_main_option("sqlalchemy.url")
    raw = given or os.environ["DATABASE_URL"]
    return raw.replace("postgresql://", "postgresql+psycopg2://", 1)


engine = sa.create_engine(url(), poolclass=sa.pool.NullPool, connect_args={"connect_timeout": 5})
with engine.connect() as connection:
    connection.execute(sa.text("select pg_advisory_lock(:key)"), {"key": LOCK})
    connection.commit()
    context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
