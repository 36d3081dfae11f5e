"""Pools: service types that share their capacity. An identity takes one place in a pool, however many of them it uses.

The number of a pool changes under the lock of its row. When the pool is new, its service types have changed, or it had
no limit before, the number is counted from the users. Every function raises ``DatabaseUnavailable``.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared.domain.service_types import ServiceType
from shared.stores.postgres import Database, Query, Transaction

# The first number is arbitrary. A transaction takes this lock first. Newcomers to a pool without a limit share
# it, so that a count misses none of them
_LOCK = Query.text(
    """
    insert into pools (pool) select :pool from (select pg_advisory_xact_lock(1296846936, hashtext(:pool))) as locked
    on conflict (pool) do update set users = pools.users
    returning service_types
    """
)
_SHARE_LOCK = Query.text("select pg_advisory_xact_lock_shared(1296846936, hashtext(:pool))")
_UNCOUNT = Query.text("update pools set service_types = '' where pool = :pool and service_types <> ''")
_COUNT = Query.text(
    """
    update pools set service_types = :of, users =
        (select count(distinct identity) from users
         where service_type = any(cast(:members as text[])) and user_id <> :user_id)
    where pool = :pool
    """
)
_HAS_PLACE = Query.text(
    "select exists(select 1 from users where identity = :identity "
    "and service_type = any(cast(:members as text[])) and user_id <> :user_id) as has_place"
)
_TAKE = Query.text("update pools set users = users + 1 where pool = :pool and users < :max_users returning users")
_FULL = Query.text("select users from pools where pool = :pool and service_types = :of and users >= :max_users")
_LEAVE = Query.text(
    """
    update pools set users = greatest(users - 1, 0)
    where pool = :pool and service_types = :of and not exists
        (select 1 from users where identity = :identity and service_type = any(cast(:members as text[])))
    """
)
_STATUS = Query.text(
    """
    select coalesce(
        (select users from pools where pool = :pool and service_types = :of),
        (select count(distinct identity) from users where service_type = any(cast(:members as text[])))) as users
    """
)


async def is_full(database: Database, user_id: str, identity: str, row: ServiceType) -> bool:
    """Whether a pool is full. The check takes no lock, so that newcomers to a full pool cost little."""
    if not row.max_users or not await database.fetch(_FULL, pool=row.pool, of=_of(row), max_users=row.max_users):
        return False
    return not (await database.fetch(_HAS_PLACE, identity=identity, members=_members(row), user_id=user_id))[0][
        "has_place"
    ]


async def take_place(transaction: Transaction, user_id: str, identity: str, row: ServiceType) -> bool:
    """Give a new user, whose row is written, a place, unless its identity has one.

    :returns: False when there is none.
    """
    pool, members = row.pool, _members(row)
    if not row.max_users:
        await _uncount(transaction, row)
        return True
    locked = await transaction.fetch_one(_LOCK, pool=pool)
    if locked is None or locked["service_types"] != _of(row):
        await transaction.execute(_COUNT, pool=pool, of=_of(row), members=members, user_id=user_id)
    found = (await transaction.fetch(_HAS_PLACE, identity=identity, members=members, user_id=user_id))[0]
    if found["has_place"]:
        return True
    return await transaction.fetch_one(_TAKE, pool=pool, max_users=row.max_users) is not None


async def leave(transaction: Transaction, identity: str, row: ServiceType) -> None:
    """Free the place of an identity whose user was deleted, unless it has another user in the pool."""
    if not row.max_users:
        await _uncount(transaction, row)
        return
    await transaction.fetch_one(_LOCK, pool=row.pool)
    await transaction.execute(_LEAVE, pool=row.pool, of=_of(row), identity=identity, members=_members(row))


async def _uncount(transaction: Transaction, row: ServiceType) -> None:
    """Keep no count of a pool without a limit, so that newcomers don't wait for each other."""
    await transaction.fetch_one(_SHARE_LOCK, pool=row.pool)
    await transaction.execute(_UNCOUNT, pool=row.pool)


async def status(database: Database, rows: Iterable[ServiceType]) -> list[tuple[str, int, int]]:
    """Name, users and capacity of each pool."""
    pools = {row.pool: row for row in rows if row.pool is not None}
    return [
        (
            pool,
            (await database.fetch(_STATUS, pool=pool, of=_of(row), members=_members(row)))[0]["users"],
            row.max_users,
        )
        for pool, row in sorted(pools.items())
    ]


def _members(row: ServiceType) -> list[str]:
    return list(row.pool_members)


def _of(row: ServiceType) -> str:
    return ",".join(row.pool_members)
