"""The ledger by days

Each UTC day is a table of its own, which is made ahead and dropped when it is old (``mlpa ledger partitions``). What
was there becomes the partition of all days until the day after tomorrow; no row is copied. The release before finds no
constraint for its ON CONFLICT from then on: its rows wait in Redis, and gateways of this release write them.
"""

from __future__ import annotations

from importlib import import_module

from alembic import op

from migrations.indexes import create_concurrently

revision = "0006"
down_revision = "0005"

#: Days that are made here, after those of the table that was there.
_AHEAD = 7
_create_triggers = import_module("migrations.versions.0005_sums_of_the_ledger").create_triggers
#: Tomorrow's end; or later, if a clock that was ahead left rows there.
_BOUND = (
    "date_trunc('day', greatest(now() + interval '24 hours', (select max(admitted_at) from ledger)), 'UTC')"
    " + interval '24 hours'"
)


def upgrade() -> None:
    # What takes long comes first, and locks nobody out
    create_concurrently("ledger_before_key", "ledger", ["id", "admitted_at"], unique=True)
    create_concurrently("ledger_before_request", "ledger", ["request_id"])
    with op.get_context().autocommit_block():
        op.execute("alter table ledger drop constraint if exists ledger_before_bound")
        op.execute(
            f"""
            do $$ begin
                execute format('alter table ledger add constraint ledger_before_bound'
                    ' check (admitted_at < %L) not valid', {_BOUND});
            end $$
            """
        )
        op.execute("alter table ledger validate constraint ledger_before_bound")
    for statement in (
        "drop trigger ledger_changed on ledger",
        "drop trigger ledger_added on ledger",
        "alter table ledger rename to ledger_before",
        "alter table ledger_before drop constraint ledger_pkey",
        "alter table ledger_before add constraint ledger_before_pkey primary key using index ledger_before_key",
        "alter index ledger_admitted rename to ledger_before_admitted",
        "alter index ledger_user_admitted rename to ledger_before_user_admitted",
        "create table ledger (like ledger_before including defaults including comments)"
        " partition by range (admitted_at)",
        "alter table ledger add constraint ledger_pkey primary key (id, admitted_at)",
        "create index ledger_admitted on ledger (admitted_at)",
        "create index ledger_user_admitted on ledger (user_id, admitted_at desc)",
        "create index ledger_request on ledger (request_id)",
        # The bound that the constraint has, so that no row need be looked at
        f"""
        do $$
        declare
            bound timestamptz := substring(pg_get_constraintdef(oid) from '''([^'']+)''') from pg_constraint
                where conname = 'ledger_before_bound';
        begin
            execute format('alter table ledger attach partition ledger_before'
                ' for values from (minvalue) to (%L)', bound);
            for ahead in 0..{_AHEAD - 1} loop
                execute format('create table ledger_%s partition of ledger for values from (%L) to (%L)',
                    to_char(bound at time zone 'UTC' + ahead * interval '1 day', 'YYYYMMDD'),
                    bound + ahead * interval '24 hours', bound + (ahead + 1) * interval '24 hours');
            end loop;
        end $$
        """,
        "alter table ledger_before drop constraint ledger_before_bound",
        "create table ledger_default partition of ledger default",
    ):
        op.execute(statement)
    _create_triggers()


def downgrade() -> None:
    """All rows come into one table again, while nobody reads or writes them."""
    for statement in (
        "lock table ledger in access exclusive mode",
        "drop trigger ledger_changed on ledger",
        "drop trigger ledger_added on ledger",
        """
        do $$ begin
            if to_regclass('ledger_before') is null then
                create table ledger_before (like ledger including defaults including comments);
            else
                alter table ledger detach partition ledger_before;
                alter table ledger_before drop constraint ledger_before_pkey;
            end if;
        end $$
        """,
        "drop index if exists ledger_before_request, ledger_before_admitted, ledger_before_user_admitted",
        "insert into ledger_before select * from ledger",
        "drop table ledger",
        "alter table ledger_before rename to ledger",
        "alter table ledger add constraint ledger_pkey primary key (id)",
        "create index ledger_admitted on ledger (admitted_at)",
        "create index ledger_user_admitted on ledger (user_id, admitted_at desc)",
    ):
        op.execute(statement)
    _create_triggers()
