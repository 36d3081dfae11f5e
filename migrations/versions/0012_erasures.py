"""Erasures of identities

What is kept of an erased identity has a digest instead of its id. ``rename_requests`` and ``rename_entries`` run with
the rights of their owner, and only ever put a digest where an id was, or the other way round: auth may change neither
the ledger nor the audit log in another way.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"

_CREDENTIAL = """
    create or replace function credential_of(user_id text) returns text language sql immutable parallel safe as $$
        select case
            when user_id ~ '^([0-9a-f]{{32}}{fxa}):' then 'fxa'
            when user_id ~ '^([A-Za-z0-9+/]{{43}}={app_attest}):' then 'app_attest'
            when user_id ~ '^([0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}{play}):' then 'play'
            else 'other' end
    $$
"""
_ERASED = r"|erased\.{0}\.[0-9a-f]{{64}}"
_CHECK = """
        if (was like 'erased.%') = (becomes like 'erased.%') then
            raise exception 'one of the two names must be that of an erased identity';
        end if;
"""
_RENAME_REQUESTS = f"""
    create function rename_requests(was text, becomes text, since timestamptz, most integer) returns integer
    language plpgsql security definer set search_path = public, pg_temp as $$
    declare
        renamed integer;
    begin
        {_CHECK}
        with batch as materialized (
            select id, admitted_at from ledger where user_id = was and admitted_at >= since
            order by admitted_at desc limit most for update)
        update ledger set user_id = becomes from batch
        where ledger.id = batch.id and ledger.admitted_at = batch.admitted_at;
        get diagnostics renamed = row_count;
        if renamed < most then
            -- The days of rows that were renamed are 0 now; those of rows that are gone have what was spent
            with gone as (
                delete from user_spend where user_id = was and day >= cast(since at time zone 'UTC' as date)
                returning day, spent_nano)
            insert into user_spend as kept (user_id, day, spent_nano)
            select becomes, day, spent_nano from gone where spent_nano <> 0 order by day
            on conflict (user_id, day) do update set spent_nano = kept.spent_nano + excluded.spent_nano;
        end if;
        return renamed;
    end
    $$
"""
# Ids are of letters, digits and "+/=-", which stand for themselves in JSON. One that is short may be a part of anything
_RENAME_ENTRIES = f"""
    create function rename_entries(was text, becomes text) returns integer
    language plpgsql security definer set search_path = public, pg_temp as $$
    declare
        renamed integer;
        anywhere boolean := length(was) >= 32;
    begin
        {_CHECK}
        update audit_log set
            subject = case when anywhere then replace(subject, was, becomes)
                else becomes || substring(subject from length(was) + 1) end,
            old = case when anywhere then cast(replace(cast(old as text), was, becomes) as jsonb) else old end,
            "new" = case when anywhere then cast(replace(cast("new" as text), was, becomes) as jsonb) else "new" end
        where subject = was or (subject >= was || ':' and subject < was || ';')
            or (anywhere and position(was in concat(subject, ' ', old, ' ', "new")) > 0);
        get diagnostics renamed = row_count;
        return renamed;
    end
    $$
"""


def upgrade() -> None:
    time = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "erasures",
        sa.Column("digest", sa.Text(collation="C"), primary_key=True, comment="what is kept has this for an identity"),
        sa.Column(
            "fingerprint",
            postgresql.BYTEA(),
            comment="SHA-256 of the identity, for a day: gateways refuse its tokens by it, and rename late rows",
        ),
        sa.Column("sealed", postgresql.BYTEA(), comment="the identity, encrypted, until every store has forgotten it"),
        sa.Column("service_types", postgresql.ARRAY(sa.Text()), nullable=False, server_default="{}"),
        sa.Column("erased_at", time, nullable=False, server_default=sa.text("now()")),
        sa.Column("forgotten_at", time, comment="when Redis had nothing of it any more"),
        sa.Column("device_revoked_at", time),
        sa.Column("device_revoked_reason", sa.Text()),
    )
    op.create_index("erasures_fingerprint", "erasures", ["fingerprint"], unique=True)
    op.create_index("erasures_open", "erasures", ["erased_at"], postgresql_where=sa.text("sealed is not null"))
    op.execute(_CREDENTIAL.format(**{kind: _ERASED.format(kind) for kind in ("fxa", "app_attest", "play")}))
    op.execute(_RENAME_REQUESTS)
    op.execute(_RENAME_ENTRIES)
    op.execute("revoke execute on function rename_requests(text, text, timestamptz, integer) from public")
    op.execute("revoke execute on function rename_entries(text, text) from public")


def downgrade() -> None:
    op.execute("drop function rename_entries(text, text)")
    op.execute("drop function rename_requests(text, text, timestamptz, integer)")
    op.execute(_CREDENTIAL.format(fxa="", app_attest="", play=""))
    op.drop_table("erasures")
