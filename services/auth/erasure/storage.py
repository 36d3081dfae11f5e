"""The SQL of erasures.

One transaction removes the rows about an identity, or renames them to its digest, except those of the ledger and the
audit log: there may be many of these, so they are renamed in batches. Every function raises ``DatabaseUnavailable``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.auth.standing import storage as standing
from shared.stores.postgres import Database, Query, Row, Transaction

#: Rows of the ledger that one statement renames.
_BATCH = 1000

_USERS = Query.text("select user_id, service_type from users where identity = :identity order by user_id for update")
# Every decision about a device locks its row first
_DEVICE = Query.text("select key_id from devices where key_id = :identity for update")
#: The rows of an identity's users: ``;`` comes after ``:``.
IN_RANGE = "user_id >= :identity || ':' and user_id < :identity || ';'"
ABOUT_SUBJECT = "subject = :identity or (subject >= :identity || ':' and subject < :identity || ';')"
_HELD = Query.text(
    f"""
    select exists(select from users where identity = :identity)
        or exists(select from devices where key_id = :identity)
        or exists(select from identities where identity = :identity)
        or exists(select from redis_changes where identity = :identity)
        or exists(select from refusals where {IN_RANGE})
        or exists(select from revocations where {IN_RANGE})
        or exists(select from user_spend where {IN_RANGE})
        or exists(select from ledger where {IN_RANGE})
        or exists(select from audit_log where {ABOUT_SUBJECT}) as held
    """  # noqa: S608  ours
)
#: Keeps both of two decisions about one identity, under its id and under its digest.
_KEEP_BLOCK = Query.text(
    """
    update identities as kept set blocked_at = coalesce(kept.blocked_at, gone.blocked_at),
        blocked_reason = coalesce(kept.blocked_reason, gone.blocked_reason),
        tokens_from_ms = greatest(kept.tokens_from_ms, gone.tokens_from_ms),
        generation = greatest(kept.generation, gone.generation)
    from identities as gone where kept.identity = :identity and gone.identity = :digest
    """
)
_DROP_OLD = Query.text(
    "delete from identities where identity = :digest and exists (select from identities where identity = :identity)"
)
_RENAME = [
    Query.text(
        "update identities set identity = :digest, blocked_reason = replace(blocked_reason, :identity, :digest)"
        " where identity = :identity"
    ),
    Query.text(
        "update revocations set user_id = :digest || substring(user_id from length(:identity) + 1)"  # noqa: S608  ours
        f" where {IN_RANGE}"
    ),
]
_REMOVE_REFUSALS = Query.text(f"delete from refusals where {IN_RANGE}")  # noqa: S608  ours
_REMOVE = [
    Query.text("delete from users where identity = :identity"),  # and its exceptions
    Query.text("delete from devices where key_id = :identity"),
    Query.text("delete from redis_changes where identity = :identity"),
    _REMOVE_REFUSALS,
]
_BEGIN = Query.text(
    """
    insert into erasures as e (digest, fingerprint, sealed, service_types, device_revoked_at, device_revoked_reason)
    select :digest, sha256(convert_to(:identity, 'UTF8')), :sealed, cast(:service_types as text[]),
        (select revoked_at from devices where key_id = :identity),
        (select replace(revoked_reason, :identity, :digest) from devices where key_id = :identity)
    on conflict (digest) do update set fingerprint = excluded.fingerprint, sealed = excluded.sealed,
        service_types = excluded.service_types, erased_at = now(), forgotten_at = null,
        device_revoked_at = coalesce(e.device_revoked_at, excluded.device_revoked_at),
        device_revoked_reason = coalesce(e.device_revoked_reason, excluded.device_revoked_reason)
    returning erased_at
    """
)
_UNFINISHED = Query.text(
    """
    select digest, sealed, service_types, erased_at, false as forgotten from erasures
    where fingerprint = sha256(convert_to(:identity, 'UTF8')) and sealed is not null and forgotten_at is null
        and not exists(select from devices where key_id = :identity)
        and not exists(select from identities where identity = :identity)
    """
)
#: Frees the fingerprint, which is unique, from an erasure with a digest by an older secret.
_FORGET_FINGERPRINT = Query.text(
    "update erasures set fingerprint = null, sealed = null"
    " where fingerprint = sha256(convert_to(:identity, 'UTF8')) and digest <> :digest"
)

_UNBLOCK = Query.text(
    "update identities set blocked_at = null, blocked_reason = null"
    " where identity = any(cast(:digests as text[])) and blocked_at is not null"
)
_NEXT_USER = Query.text(
    f"""
    (select user_id from ledger where {IN_RANGE} limit 1) union all
    (select user_id from user_spend where {IN_RANGE} limit 1) limit 1
    """  # noqa: S608  ours
)
_RENAME_REQUESTS = Query.text("select rename_requests(:user_id, :becomes, '-infinity', :batch) as renamed")
_RENAME_ENTRIES = Query.text("select rename_entries(:identity, :digest) as renamed")

_RETURNED = Query.text("select exists(select from users where identity = :identity) as returned")
_FORGOTTEN = Query.text("update erasures set forgotten_at = now() where digest = :digest and erased_at = :erased_at")
_UNPROVISION = Query.text("update users set litellm_budget = null where identity = :identity")
_DONE = Query.text(
    "update erasures set sealed = null, service_types = '{}' where digest = :digest and erased_at = :erased_at"
)
_OPEN = Query.text(
    """
    select digest, sealed, service_types, erased_at, forgotten_at is not null as forgotten from erasures
    where sealed is not null and (forgotten_at is null or forgotten_at < now() - make_interval(secs => :settle))
        and (erased_at, digest) > (cast(:at as timestamptz), :after)
    order by erased_at, digest limit 100
    """
)
_OLDEST = Query.text(
    "select coalesce(extract(epoch from now() - min(erased_at)), 0)::float as age from erasures"
    " where sealed is not null"
)
_CLEAR = Query.text(
    "update erasures set fingerprint = null where fingerprint is not null and sealed is null"
    " and erased_at < now() - make_interval(secs => :kept)"
)
_SPEND_ROWS = [
    Query.text('delete from "LiteLLM_SpendLogs" where end_user = any(cast(:users as text[]))'),
    Query.text('delete from "LiteLLM_DailyEndUserSpend" where end_user_id = any(cast(:users as text[]))'),
]


@dataclass(frozen=True, slots=True)
class Open:
    """An erasure that is not finished in every store. ``forgotten``: Redis holds nothing about the identity."""

    digest: str
    sealed: bytes
    service_types: list[str]
    erased_at: datetime
    forgotten: bool


async def lock_users(transaction: Transaction, identity: str) -> list[Row]:
    """Lock an identity, its device and its users. Returns ``user_id`` and ``service_type`` of each."""
    await standing.lock(transaction, identity)
    await transaction.fetch(_DEVICE, identity=identity)
    return await transaction.fetch(_USERS, identity=identity)


async def is_held(transaction: Transaction, identity: str) -> bool:
    """Whether PostgreSQL holds anything about an identity."""
    return bool((await transaction.fetch(_HELD, identity=identity))[0]["held"])


async def unfinished(transaction: Transaction, identity: str) -> Open | None:
    """The erasure of an identity that Redis has not forgotten yet, unless a device or a decision came since."""
    row = await transaction.fetch_one(_UNFINISHED, identity=identity)
    return Open(**row) if row else None


async def begin(
    transaction: Transaction, identity: str, digest: str, sealed: bytes, service_types: Sequence[str]
) -> Open:
    """Remove an identity, keep its decisions under its digest, and record the erasure."""
    names = {"identity": identity, "digest": digest}
    await transaction.execute(_FORGET_FINGERPRINT, **names)
    row = await transaction.fetch_one(_BEGIN, sealed=sealed, service_types=list(service_types), **names)
    assert row is not None
    for query in (_KEEP_BLOCK, _DROP_OLD, *_RENAME, *_REMOVE):
        await transaction.execute(query, **names)
    return Open(digest, sealed, list(service_types), row["erased_at"], False)


async def unblock(transaction: Transaction, digests: Sequence[str]) -> bool:
    """End the block that is kept under one of these digests.

    :returns: False if there is none.
    """
    return bool(await transaction.execute(_UNBLOCK, digests=list(digests)))


async def rename_records(database: Database, identity: str, digest: str) -> None:
    """Rename an identity in the ledger and the audit log. May be repeated at any time.

    :raises DatabaseUnavailable: some rows may be renamed, and some not.
    """
    while users := await database.fetch(_NEXT_USER, identity=identity):
        user_id: str = users[0]["user_id"]
        becomes = digest + user_id.removeprefix(identity)
        renamed = _BATCH
        while renamed == _BATCH:
            row = await database.fetch_one(_RENAME_REQUESTS, user_id=user_id, becomes=becomes, batch=_BATCH)
            renamed = row["renamed"] if row else 0
    await database.execute(_REMOVE_REFUSALS, identity=identity)
    await database.fetch_one(_RENAME_ENTRIES, identity=identity, digest=digest)


async def has_returned(database: Database, identity: str) -> bool:
    return bool((await database.fetch(_RETURNED, identity=identity))[0]["returned"])


async def forgotten(database: Database, erasure: Open) -> None:
    """Record that Redis holds nothing about the identity any more: from now on it may return."""
    await database.execute(_FORGOTTEN, digest=erasure.digest, erased_at=erasure.erased_at)


async def unprovision(database: Database, identity: str) -> None:
    """Have LiteLLM's customers made again for an identity that has returned."""
    await database.execute(_UNPROVISION, identity=identity)


async def done(database: Database, erasure: Open) -> None:
    """Forget the identity of an erasure."""
    await database.execute(_DONE, digest=erasure.digest, erased_at=erasure.erased_at)


async def open_erasures(database: Database, settle: float) -> AsyncIterator[Open]:
    """The erasures that are due, oldest first: those that Redis has not forgotten, or forgot ``settle`` seconds ago."""
    at: datetime | str = "-infinity"
    after = ""
    while rows := await database.fetch(_OPEN, settle=settle, at=at, after=after):
        for row in rows:
            yield Open(**row)
        at, after = rows[-1]["erased_at"], rows[-1]["digest"]


async def oldest(database: Database) -> float:
    """The age of the oldest erasure that is not finished, in seconds; 0 if there is none."""
    age: float = (await database.fetch(_OLDEST))[0]["age"]
    return age


async def clear(database: Database, kept: float) -> None:
    """Delete the fingerprints of erasures that are older than ``kept`` seconds."""
    await database.execute(_CLEAR, kept=kept)


async def delete_spend_rows(litellm: Database, users: Sequence[str]) -> None:
    """Delete what LiteLLM recorded about requests of users, in its own database: its API has nothing for that.

    :raises DatabaseUnavailable: LiteLLM's database could not be asked.
    """
    for query in _SPEND_ROWS:
        await litellm.execute(query, users=list(users))
