"""Statements that a test runs beside what it tests."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2


def sql(url: str, *statements: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of the last statement. Each is committed on its own."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []
