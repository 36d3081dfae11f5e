"""Indexes of tables that requests use meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alembic import op


def create_concurrently(name: str, table: str, columns: Sequence[Any], **options: Any) -> None:
    """Make an index without locking its table. One that an earlier try left unfinished is made again.

    It commits what the migration did before, which must therefore be repeatable, or come after it.
    """
    with op.get_context().autocommit_block():
        op.execute("set statement_timeout = 0")
        op.execute(f"drop index concurrently if exists {name}")
        op.create_index(name, table, columns, postgresql_concurrently=True, **options)
        op.execute("reset statement_timeout")


def drop_concurrently(name: str, table: str) -> None:
    with op.get_context().autocommit_block():
        op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)
