"""Sums that the ledger keeps of itself

Triggers keep them in the statement that writes the rows, whoever writes it: the release before and this one may both
run. What is in the ledger already is summed up while its writers wait; their rows stay in Redis meanwhile.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

#: The advisory lock that writers share, and that a build of the totals takes alone (``ledger/storage.py``).
WRITERS = 0x4D4C5057
#: Writers are spread over so many rows of a sum, so that one need not wait for the commit of another.
LANES = 8

_ADDED = "select 1 as sign, added.* from added"
_CHANGED = f"{_ADDED} union all select -1, removed.* from removed"


def sums(changes: str) -> list[str]:
    """The statements that add rows to the sums.

    They lock rows in one order, so that two writers can't wait for each other.

    :param changes: a query of ledger rows, each with its ``sign``.
    """
    return [
        f"""
        insert into user_spend as kept (user_id, day, spent_nano)
        select user_id, cast(admitted_at at time zone 'UTC' as date), sum(sign * cost_nano)
        from ({changes}) as row group by 1, 2 order by 1, 2
        on conflict (user_id, day) do update set spent_nano = kept.spent_nano + excluded.spent_nano
        """,
        f"""
        insert into ledger_totals as kept (service_type, hour, shard, lane, spent_nano)
        select service_type, date_trunc('hour', admitted_at, 'UTC'), get_byte(sha256(convert_to(
                   left(user_id, length(user_id) - length(service_type) - 1), 'UTF8')), 0) % 64,
               pg_backend_pid() % {LANES}, sum(sign * cost_nano)
        from ({changes}) as row group by 1, 2, 3 order by 1, 2, 3
        on conflict (service_type, hour, shard, lane) do update set spent_nano = kept.spent_nano + excluded.spent_nano
        """,
        f"""
        insert into ledger_hours as kept (hour, service_type, model, purpose, credential, outcome, lane,
            requests, cost_nano, prompt_tokens, completion_tokens)
        select date_trunc('hour', admitted_at, 'UTC'), service_type, model, purpose, credential_of(user_id), outcome,
               pg_backend_pid() % {LANES}, sum(sign), sum(sign * cost_nano), sum(sign * prompt_tokens),
               sum(sign * completion_tokens)
        from ({changes}) as row group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6
        on conflict (hour, service_type, model, purpose, credential, outcome, lane) do update set
            requests = kept.requests + excluded.requests, cost_nano = kept.cost_nano + excluded.cost_nano,
            prompt_tokens = kept.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = kept.completion_tokens + excluded.completion_tokens
        """,
    ]


def function(name: str, changes: str) -> str:
    """A trigger's function, which has the rights of its owner: who writes rows need not be able to write sums."""
    return f"""
        create function {name}() returns trigger language plpgsql
        security definer set search_path = public, pg_temp as $$
        begin
            if exists (select from added) then
                perform pg_advisory_xact_lock_shared({WRITERS});
                {";".join(sums(changes))};
            end if;
            return null;
        end
        $$
    """


CREDENTIAL = """
    create function credential_of(user_id text) returns text language sql immutable parallel safe as $$
        select case
            when user_id ~ '^[0-9a-f]{32}:' then 'fxa'
            when user_id ~ '^[A-Za-z0-9+/]{43}=:' then 'app_attest'
            when user_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:' then 'play'
            else 'other' end
    $$
"""
#: From here on rows count for a period that has not ended: the earliest beginning, since a long period may have begun
#: after a shorter one.
_CURRENT = """
    select to_timestamp(min(floor(extract(epoch from now()) / seconds) * seconds)) from (
        select 86400 as seconds union select period_seconds from ledger
        where admitted_at >= now() - interval '31 days') as each
"""
#: Hours that requests still end in; those before have been summed up by auth.
_OPEN_HOURS = "select date_trunc('hour', now() - interval '1 hour', 'UTC')"


def upgrade() -> None:
    number = sa.BigInteger()
    time = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "user_spend",
        sa.Column("user_id", sa.Text(collation="C"), nullable=False),
        sa.Column("day", sa.Date(), nullable=False, comment="of admission, UTC"),
        sa.Column("spent_nano", number, nullable=False, comment="nano-dollars"),
        sa.PrimaryKeyConstraint("user_id", "day"),
    )
    op.create_table(
        "ledger_totals",
        sa.Column("service_type", sa.Text(), nullable=False),
        sa.Column("hour", time, nullable=False, comment="of admission"),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("lane", sa.SmallInteger(), nullable=False, comment="a sum is that of its lanes"),
        sa.Column("spent_nano", number, nullable=False, comment="nano-dollars"),
        sa.PrimaryKeyConstraint("service_type", "hour", "shard", "lane"),
    )
    op.create_table(
        "ledger_hours",
        sa.Column("hour", time, nullable=False, comment="of admission"),
        sa.Column("service_type", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("credential", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("lane", sa.SmallInteger(), nullable=False, comment="a sum is that of its lanes"),
        sa.Column("requests", number, nullable=False),
        sa.Column("cost_nano", number, nullable=False, comment="nano-dollars"),
        sa.Column("prompt_tokens", number, nullable=False),
        sa.Column("completion_tokens", number, nullable=False),
        sa.PrimaryKeyConstraint("hour", "service_type", "model", "purpose", "credential", "outcome", "lane"),
    )
    # Room on each page, so that adding to a sum touches no index
    for table in ("user_spend", "ledger_totals", "ledger_hours"):
        op.execute(f"alter table {table} set (fillfactor = 70)")
    op.execute(CREDENTIAL)
    op.execute(function("ledger_added", _ADDED))
    op.execute(function("ledger_changed", _CHANGED))
    create_triggers()
    spend, totals, hours = (
        sums(f"select 1 as sign, ledger.* from ledger where admitted_at >= ({since})")[which]
        for which, since in enumerate((_CURRENT, _CURRENT, _OPEN_HOURS))
    )
    op.execute(spend)
    op.execute(totals)
    op.execute(hours)
    op.execute(
        f"""
        insert into ledger_hours
        select hour, service_type, 'unknown', 'unknown', 'unknown', outcome, 0, requests, cost_nano, prompt_tokens,
               completion_tokens
        from usage_hours where hour < ({_OPEN_HOURS})
        """
    )


def create_triggers() -> None:
    """The writers that are under way end first, and the others wait for this transaction."""
    op.execute(
        "create trigger ledger_added after insert on ledger referencing new table as added"
        " for each statement execute function ledger_added()"
    )
    op.execute(
        "create trigger ledger_changed after update on ledger referencing old table as removed new table as added"
        " for each statement execute function ledger_changed()"
    )


def downgrade() -> None:
    op.execute("drop trigger ledger_changed on ledger")
    op.execute("drop trigger ledger_added on ledger")
    op.execute("drop function ledger_changed()")
    op.execute("drop function ledger_added()")
    op.execute("drop function credential_of(text)")
    for table in ("ledger_hours", "ledger_totals", "user_spend"):
        op.drop_table(table)
