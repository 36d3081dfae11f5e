"""Databases of tests with the newest schema, which serve one test after the other."""

from __future__ import annotations

import itertools
import time

import psycopg2

from services.local.postgres import PostgresServer

#: The bytes of a database's tables at which it isn't worth emptying.
_MOST = 2**20
_TABLES = "select quote_ident(tablename) from pg_tables where schemaname = 'public' and tablename <> 'alembic_version'"
_SEQUENCES = "select format('setval(%L, 1, false)', sequencename) from pg_sequences where schemaname = 'public'"
#: Ends the other connections; how many there were. (It could wait for their end itself, in steps of 100 ms.)
_OTHERS = (
    "select count(pg_terminate_backend(pid)) from pg_stat_activity "
    "where datname = current_database() and pid <> pg_backend_pid()"
)
_SIZE = "select sum(pg_relation_size(oid)) from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
#: The newest change and the number of what a schema consists of, and its rights. PostgreSQL's own is below 16384.
_SCHEMA = " union all ".join(
    f"select '{catalog}', max(xmin::text::bigint), count(*) from {catalog} where {key} >= 16384"
    for catalog, key in (
        *(("pg_attribute", "attrelid"), ("pg_rewrite", "ev_class"), ("pg_trigger", "tgrelid")),
        *((name, "oid") for name in ("pg_class", "pg_constraint", "pg_policy", "pg_proc", "pg_type")),
        *(("pg_default_acl", "16384"), ("pg_namespace", "16384"), ("pg_db_role_setting", "16384")),
    )
)


class Databases:
    """Gives each test a database that looks fresh.

    To empty one costs a fifth of the CPU time of a copy of the template. A test that has changed the schema, or filled
    it with much, leaves one that is dropped.
    """

    def __init__(self, server: PostgresServer, template: str) -> None:
        self._server = server
        self._template = template
        self._names = (f"test_{number}" for number in itertools.count(1))
        self._free: list[str] = []
        #: One to each, which remains open, since a new one would have to learn the schema.
        self._connections: dict[str, psycopg2.extensions.connection] = {}
        with psycopg2.connect(server.url(template)) as connection, connection.cursor() as cursor:
            tables, sequences = ([text for (text,) in _rows(cursor, each)] for each in (_TABLES, _SEQUENCES))
            self._schema = _rows(cursor, _SCHEMA)
        connection.close()
        deletes = "; ".join(f"delete from {table}" for table in tables)
        # a replica runs no triggers
        self._empty = f"set session_replication_role = replica; {deletes}; select {', '.join(sequences)}"

    def take(self) -> str:
        """The name of a database without rows."""
        if self._free:
            return self._free.pop()
        name = next(self._names)
        self._connections[name] = psycopg2.connect(self._server.create_database(name, template=self._template))
        return name

    def give_back(self, name: str) -> None:
        """Take a database back, and end all connections to it."""
        if self._emptied(name):
            self._free.append(name)
        else:
            self._connections.pop(name).close()
            self._server.drop_database(name)

    def _emptied(self, name: str) -> bool:
        with self._connections[name] as connection, connection.cursor() as cursor:
            while _rows(cursor, _OTHERS) != [(0,)]:
                connection.rollback()  # a transaction always sees the same of them
                time.sleep(0.001)
            unchanged = _rows(cursor, _SCHEMA) == self._schema
            if unchanged and _rows(cursor, _SIZE)[0][0] < _MOST:
                cursor.execute(self._empty)
                return True
        return False


def _rows(cursor: psycopg2.extensions.cursor, statement: str) -> list[tuple[object, ...]]:
    cursor.execute(statement)
    return cursor.fetchall()
