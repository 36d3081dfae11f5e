"""The SQL of decisions about identities, and of the decisions that Redis may lack.

A decision and its row in ``redis_changes`` are written in one transaction. Every function raises
``DatabaseUnavailable``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from shared.errors import DependencyUnavailable
from shared.state.decisions import Oldest
from shared.state.layout import Standing
from shared.state.packed import Excepted
from shared.stores.postgres import Database, Query, Transaction

_STANDING = Query.text(
    """
    select i.blocked_at is not null as blocked,
           exists(select 1 from devices where key_id = :identity and revoked_at is not null) as revoked,
           coalesce(i.tokens_from_ms / 1000, 0) as issued, coalesce(i.generation, 0) as generation
    from (select) as one left join identities i on i.identity = :identity
    """
)
_REFUSE_OLDER = Query.text(
    """
    insert into identities as i (identity, tokens_from_ms) values (:identity, :ms)
    on conflict (identity) do update set tokens_from_ms = excluded.tokens_from_ms
        where coalesce(i.tokens_from_ms, 0) < excluded.tokens_from_ms
    returning identity
    """
)
_RAISE_GENERATION = Query.text(
    """
    insert into identities as i (identity, generation)
    select :identity, :generation where exists (select from users where identity = :identity)
    on conflict (identity) do update set generation = greatest(i.generation, excluded.generation)
    returning coalesce(tokens_from_ms / 1000, 0) as issued, generation
    """
)
#: The standing at an exchange. Decisions about an erased identity are kept under its digests.
_AT_DOOR = Query.text(
    """
    select coalesce(bool_or(blocked_at is not null), false) as blocked,
           coalesce(max(tokens_from_ms) / 1000, 0) as issued, coalesce(max(generation), 0) as generation,
           exists(select from devices where key_id = :identity and revoked_at is not null)
               or exists(select from erasures where digest = any(cast(:names as text[]))
                   and device_revoked_at is not null) as revoked,
           exists(select from erasures where fingerprint = sha256(convert_to(:identity, 'UTF8'))
               and forgotten_at is null) as erasing
    from identities where identity = any(cast(:names as text[]))
    """
)
_BLOCK = Query.text(
    """
    insert into identities as i (identity, blocked_at, blocked_reason) values (:identity, now(), :reason)
    on conflict (identity) do update set blocked_at = coalesce(i.blocked_at, now()), blocked_reason = :reason
    """
)
_UNBLOCK = Query.text(
    "update identities set blocked_at = null, blocked_reason = null "
    "where identity = :identity and blocked_at is not null"
)
_REVOKE_DEVICE = Query.text(
    "update devices set revoked_at = coalesce(revoked_at, now()), revoked_reason = :reason where key_id = :key_id"
)
_REVOKE_TOKEN = Query.text(
    "insert into revocations (jti, user_id, expires_at) values (:jti, :user_id, :expires_at) "
    "on conflict do nothing returning jti"
)
_SET_TIER = Query.text("update users set budget_tier = :tier where user_id = :user_id")
_TOKEN = Query.text(
    "select exists (select from redis_changes where identity = :identity) as waiting from revocations where jti = :jti"
)
_TOKENS = Query.text(
    "select jti, extract(epoch from expires_at)::float as expires_at from revocations r "
    "where r.expires_at > now() and r.user_id like :prefix escape '\\'"
)
_CLEAR = Query.text("delete from revocations where expires_at < now()")
_EXCEPT = Query.text(
    """
    insert into exceptions (user_id, extra_nano, without_rates, ends_at, reason)
    values (:user_id, :extra_nano, :without_rates, :ends_at, :reason)
    on conflict (user_id) do update set extra_nano = excluded.extra_nano, without_rates = excluded.without_rates,
        ends_at = excluded.ends_at, reason = excluded.reason
    """
)
_END_EXCEPTION = Query.text("delete from exceptions where user_id = :user_id")
_EXCEPTIONS = Query.text(
    """
    select user_id, extract(epoch from ends_at)::float as ends_at, extra_nano, without_rates
    from exceptions join users using (user_id) where identity = :identity and ends_at > now()
    """
)
#: An exception that has ended is kept for a day.
_CLEAR_EXCEPTIONS = Query.text("delete from exceptions where ends_at < now() - interval '1 day'")
_TIERS = Query.text("select user_id, budget_tier from users where identity = :identity")

_RECORD = Query.text("insert into redis_changes (identity, kind, payload) values (:identity, :kind, '{}') returning id")
_LOCK = Query.text("select pg_advisory_xact_lock(hashtextextended(:identity, 0)) is null as locked")
_TAKEN = Query.text("select coalesce(max(id), 0) as id from redis_changes where identity = :identity")
_KEPT_AS = Query.text(
    """
    select digest from erasures where digest = any(cast(:digests as text[]))
        and not exists (select from users where identity = :identity) order by erased_at desc limit 1
    """
)
_DONE = Query.text("delete from redis_changes where identity = :identity and id <= :id")
_PENDING = Query.text("select identity, min(id) as first from redis_changes group by identity order by 2 limit 100")
_COUNT = Query.text("select count(*) as pending from redis_changes")


@dataclass(frozen=True, slots=True)
class Decided:
    """All decisions about an identity, up to the change with the number ``change``; 0 if Redis has them all.

    ``tiers`` maps the identity's user ids to tiers, ``revoked_tokens`` token ids to the times of their expiry.
    """

    standing: Standing
    oldest: Oldest
    tiers: Mapping[str, str]
    revoked_tokens: Mapping[str, float]
    exceptions: Mapping[str, Excepted]
    change: int


def being_erased() -> DependencyUnavailable:
    """The error for an identity that Redis has not forgotten yet, and which can't return before that."""
    return DependencyUnavailable("redis", reason="an erasure is not finished")


async def lock(transaction: Transaction, identity: str) -> None:
    """Let no erasure of an identity, and no writer of its decisions to Redis, come in between until the end."""
    await transaction.fetch(_LOCK, identity=identity)


async def kept_as(transaction: Transaction, identity: str, digests: Sequence[str]) -> str:
    """The name under which to keep a decision about an identity: a digest if it was erased and has not returned.

    No erasure comes in between until the transaction ends.
    """
    await lock(transaction, identity)
    row = await transaction.fetch_one(_KEPT_AS, identity=identity, digests=list(digests))
    return row["digest"] if row else identity


async def standing(database: Database | Transaction, identity: str) -> tuple[Standing, Oldest]:
    """The standing of an identity, and the oldest of its tokens that are good."""
    row = (await database.fetch(_STANDING, identity=identity))[0]
    oldest = Oldest(row["issued"], row["generation"])
    return Standing.of(blocked=row["blocked"], revoked=row["revoked"]), oldest


async def refuse_older(transaction: Transaction, identity: str, ms: int) -> bool:
    """Refuse the tokens of an identity that were issued before the second of a unix time in milliseconds.

    :returns: False if it was so before, for this or a later time.
    """
    return (await transaction.fetch_one(_REFUSE_OLDER, identity=identity, ms=ms)) is not None


async def raise_generation(transaction: Transaction, identity: str, generation: int) -> Oldest:
    """Record the generation of a token, unless a later one is known.

    :raises DependencyUnavailable: the identity was erased in the meantime.
    """
    await lock(transaction, identity)
    row = await transaction.fetch_one(_RAISE_GENERATION, identity=identity, generation=generation)
    if row is None:
        raise being_erased()
    return Oldest(row["issued"], row["generation"])


async def standing_at_door(
    database: Database | Transaction, identity: str, digests: Sequence[str]
) -> tuple[Standing, Oldest]:
    """The same as ``standing``, for an identity that exchanges a credential.

    :param digests: the digests of the identity, which may have been erased.
    :raises DependencyUnavailable: the identity is being erased.
    """
    row = (await database.fetch(_AT_DOOR, identity=identity, names=[identity, *digests]))[0]
    if row["erasing"]:
        raise being_erased()
    return Standing.of(blocked=row["blocked"], revoked=row["revoked"]), Oldest(row["issued"], row["generation"])


async def block(transaction: Transaction, identity: str, reason: str | None) -> None:
    await transaction.execute(_BLOCK, identity=identity, reason=reason)


async def unblock(transaction: Transaction, identity: str) -> bool:
    """:returns: False if it was not blocked."""
    return bool(await transaction.execute(_UNBLOCK, identity=identity))


async def revoke_device(transaction: Transaction, key_id: str, reason: str | None) -> None:
    await transaction.execute(_REVOKE_DEVICE, key_id=key_id, reason=reason)


async def revoke_token(transaction: Transaction, jti: str, user_id: str, expires_at: datetime) -> bool:
    """:returns: False if it was revoked before."""
    return (await transaction.fetch_one(_REVOKE_TOKEN, jti=jti, user_id=user_id, expires_at=expires_at)) is not None


async def set_tier(transaction: Transaction, user_id: str, tier: str) -> None:
    await transaction.execute(_SET_TIER, user_id=user_id, tier=tier)


async def set_exception(transaction: Transaction, user_id: str, given: Excepted, reason: str | None) -> None:
    await transaction.execute(
        _EXCEPT,
        user_id=user_id,
        extra_nano=given.extra_nano,
        without_rates=given.without_rates,
        ends_at=datetime.fromtimestamp(given.until, UTC),
        reason=reason,
    )


async def end_exception(transaction: Transaction, user_id: str) -> None:
    await transaction.execute(_END_EXCEPTION, user_id=user_id)


async def knows_revoked(database: Database, identity: str, jti: str) -> bool:
    """Whether a token is revoked, and Redis knows all decisions about its identity."""
    rows = await database.fetch(_TOKEN, identity=identity, jti=jti)
    return bool(rows) and not rows[0]["waiting"]


async def record(transaction: Transaction, identity: str, kind: str) -> None:
    """Record that the decision of this transaction must be written to Redis.

    :param kind: a name for people who read the table.
    """
    await transaction.fetch_one(_RECORD, identity=identity, kind=kind)


async def take(transaction: Transaction, identity: str) -> Decided:
    """All decisions about an identity, locked until the transaction ends."""
    await lock(transaction, identity)
    taken = (await transaction.fetch(_TAKEN, identity=identity))[0]
    found, oldest = await standing(transaction, identity)
    revoked = await transaction.fetch(_TOKENS, prefix=_like(identity) + ":%")
    tiers = {row["user_id"]: row["budget_tier"] for row in await transaction.fetch(_TIERS, identity=identity)}
    exceptions = {
        row["user_id"]: Excepted(row["ends_at"], row["extra_nano"], row["without_rates"])
        for row in await transaction.fetch(_EXCEPTIONS, identity=identity)
    }
    return Decided(found, oldest, tiers, {row["jti"]: row["expires_at"] for row in revoked}, exceptions, taken["id"])


async def done(transaction: Transaction, identity: str, change: int) -> None:
    """Delete the changes that Redis has, up to the newest one included."""
    await transaction.execute(_DONE, identity=identity, id=change)


async def pending(database: Database) -> list[str]:
    """The identities whose changes have waited longest."""
    return [row["identity"] for row in await database.fetch(_PENDING)]


async def count_pending(database: Database) -> int:
    return int((await database.fetch(_COUNT))[0]["pending"])


async def clear_expired(database: Database) -> None:
    """Delete the revocations of tokens that have expired."""
    await database.execute(_CLEAR)
    await database.execute(_CLEAR_EXCEPTIONS)


def _like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
