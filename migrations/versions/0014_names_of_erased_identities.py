"""Exact names of erased identities, and an index of the audit entries that may mention one

``rename_requests`` and ``rename_entries`` take the two names of one identity alone: a whole digest of the same kind of
credential, and for requests the same service type. An id that was written into an audit entry, as part of a reason,
is looked for in the entries that have anything as long as an id: all others have one in their subject alone, by which
they are found.
"""

from __future__ import annotations

from importlib import import_module

import sqlalchemy as sa
from alembic import op

from migrations.indexes import create_concurrently, drop_concurrently

revision = "0014"
down_revision = "0013"

_DIGEST = r"erased\.(fxa|app_attest|play|other)\.[0-9a-f]{64}"
# A service type has at most 31 characters, and the shortest id 32
_MENTIONS_IDS = rf"""
    create or replace function mentions_ids(subject text, old jsonb, "new" jsonb) returns boolean
    language sql immutable parallel safe as $$
        select case when subject ~ '^([0-9a-f]{{32}}|[A-Za-z0-9+/]{{43}}=|[0-9a-f-]{{36}}|{_DIGEST})(:[^:]{{0,31}})?$'
                then '' else subject end
            || ' ' || coalesce(cast(old as text), '') || ' ' || coalesce(cast("new" as text), '')
            ~ '[A-Za-z0-9+/=-]{{32}}'
    $$
"""
_CHECK = rf"""
        if (was like 'erased.%') = (becomes like 'erased.%')
            or (was ~ '^{_DIGEST}(:|$)') = (becomes ~ '^{_DIGEST}(:|$)')
            or credential_of(was || ':') <> credential_of(becomes || ':') then
            raise exception 'one of the two names must be that of the erased identity';
        end if;
"""
_RENAME_REQUESTS = f"""
    create or replace function rename_requests(was text, becomes text, since timestamptz, most integer) returns integer
    language plpgsql security definer set search_path = public, pg_temp as $$
    declare
        renamed integer;
    begin
        {_CHECK}
        if substring(was from ':[^:]*$') is distinct from substring(becomes from ':[^:]*$') then
            raise exception 'the two names must be of one service type';
        end if;
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
    create or replace function rename_entries(was text, becomes text) returns integer
    language plpgsql security definer set search_path = public, pg_temp as $$
    declare
        renamed integer;
        mentioned integer := 0;
    begin
        {_CHECK}
        update audit_log set subject = becomes || substring(subject from length(was) + 1)
        where subject = was or (subject >= was || ':' and subject < was || ';');
        get diagnostics renamed = row_count;
        if length(was) >= 32 then
            update audit_log set
                subject = replace(subject, was, becomes),
                old = cast(replace(cast(old as text), was, becomes) as jsonb),
                "new" = cast(replace(cast("new" as text), was, becomes) as jsonb)
            where mentions_ids(subject, old, "new") and position(was in concat(subject, ' ', old, ' ', "new")) > 0;
            get diagnostics mentioned = row_count;
        end if;
        return renamed + mentioned;
    end
    $$
"""


def upgrade() -> None:
    op.execute(_MENTIONS_IDS)
    create_concurrently(
        "audit_log_mentions", "audit_log", ["id"], postgresql_where=sa.text('mentions_ids(subject, old, "new")')
    )
    op.execute(_RENAME_REQUESTS)
    op.execute(_RENAME_ENTRIES)


def downgrade() -> None:
    before = import_module("migrations.versions.0012_erasures")
    for function in (before._RENAME_REQUESTS, before._RENAME_ENTRIES):
        op.execute(function.replace("create function", "create or replace function"))
    drop_concurrently("audit_log_mentions", "audit_log")
    op.execute("drop function mentions_ids(text, jsonb, jsonb)")
