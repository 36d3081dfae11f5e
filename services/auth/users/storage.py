"""Users, blocks and capacity in PostgreSQL. Every function raises ``DatabaseUnavailable``."""

from __future__ import annotations

from collections.abc import Sequence

from services.auth.standing import storage as standing
from services.auth.users import pools
from shared.domain.service_types import ServiceType
from shared.state.decisions import Oldest
from shared.state.layout import Standing
from shared.stores.postgres import Database, Query, Transaction

_KNOWN = Query.text(
    """
    select exists(select 1 from users where user_id = :user_id) as known,
           coalesce((select users from capacity where service_type = :service_type), 0)
           + (select coalesce(sum(users), 0) from capacity_lanes where service_type = :service_type) as users
    """
)
_INSERT = Query.text(
    """
    insert into users (user_id, identity, service_type, budget_tier)
    select :user_id, :identity, :service_type, :service_type where not exists (
        select from erasures where fingerprint = sha256(convert_to(:identity, 'UTF8')) and forgotten_at is null)
    on conflict do nothing
    returning exists(select from erasures where digest = any(cast(:digests as text[]))) as erased
    """
)
_ROOM = Query.text(
    """
    with unlimited as (select coalesce(sum(users), 0) as users from capacity_lanes where service_type = :service_type)
    insert into capacity as c (service_type, users)
    select :service_type, 1 from unlimited where unlimited.users < :max_users or exists (
        select from capacity where service_type = :service_type)
    on conflict (service_type) do update set users = c.users + 1
        where c.users + (select users from unlimited) < :max_users
    returning users
    """
)
# Nobody waits for the row of a service type without a limit: it has 64
_COUNT = Query.text(
    "insert into capacity_lanes as c (service_type, lane, users) values (:service_type, pg_backend_pid() % 64, 1) "
    "on conflict (service_type, lane) do update set users = c.users + 1"
)
# Gives a returning identity back its decisions, and its spend since the day in which the user's period began
_TAKE_BACK = [
    Query.text(
        "update identities set identity = :identity where identity = :digest"
        " and not exists (select from identities where identity = :identity)"
    ),
    Query.text("update revocations set user_id = :user_id where user_id = :digest || ':' || :service_type"),
]
_RENAME_REQUESTS = Query.text(
    """
    select rename_requests(:digest || ':' || :service_type, :user_id,
        date_trunc('day', to_timestamp(floor(extract(epoch from now()) / :seconds) * :seconds), 'UTC'), 100000)
    """
)
# The time is indexed, so a change of it writes to all indexes of the table: exact to the hour is enough
_SEEN = Query.text(
    "update users set last_seen_at = now() where user_id = any(:users) and last_seen_at < now() - interval '1 hour'"
)


async def can_write(database: Database) -> None:
    """Run an update that touches no row, for readiness."""
    await database.execute(_SEEN, users=[])


class _Full(Exception):
    """Rolls back the newcomer's transaction."""


class DecisionChanged(Exception):
    """A decision about a newcomer came in between: it was not let in, and may try again."""


async def enter(
    database: Database, user_id: str, identity: str, row: ServiceType, digests: Sequence[str], oldest: Oldest
) -> bool:
    """Make a user row. When newcomers race for the last places, exactly as many get in as there are places.

    A newcomer that was erased spends from what is left of its period.

    :param digests: the digests of the identity, which may have been erased.
    :param oldest: the answer of ``standing_at_door``, with a good standing.
    :returns: False when a newcomer found no place.
    :raises DecisionChanged: that answer has changed.
    :raises DependencyUnavailable: the identity is being erased.
    """
    names = {"user_id": user_id, "service_type": row.name}
    found = (await database.fetch(_KNOWN, **names))[0]
    if found["known"]:
        return True
    if row.pool is not None:
        if await pools.is_full(database, user_id, identity, row):
            return False
    elif 0 < row.max_users <= found["users"]:
        return False  # while the service type is full, each newcomer costs one read and no lock
    try:
        async with database.transaction() as transaction:
            await standing.lock(transaction, identity)
            inserted = await transaction.fetch_one(_INSERT, identity=identity, digests=list(digests), **names)
            if inserted is None:
                if (await transaction.fetch(_KNOWN, **names))[0]["known"]:
                    return True
                raise standing.being_erased()
            if row.pool is not None or not row.max_users:
                await transaction.execute(_COUNT, service_type=row.name)
            elif await transaction.fetch_one(_ROOM, service_type=row.name, max_users=row.max_users) is None:
                raise _Full
            if row.pool is not None and not await pools.take_place(transaction, user_id, identity, row):
                raise _Full
            if inserted["erased"]:
                # Redis was not told of decisions about an erased identity
                if await standing.standing_at_door(transaction, identity, digests) != (Standing.GOOD, oldest):
                    raise DecisionChanged
                for digest in digests:
                    await _take_back(transaction, digest, user_id, identity, row)
    except _Full:
        return False
    return True


async def _take_back(transaction: Transaction, digest: str, user_id: str, identity: str, row: ServiceType) -> None:
    names = {"digest": digest, "service_type": row.name, "user_id": user_id}
    for query in _TAKE_BACK:
        await transaction.execute(query, identity=identity, **names)
    await transaction.fetch(_RENAME_REQUESTS, seconds=row.duration_seconds, **names)


async def seen(database: Database, users: Sequence[str]) -> None:
    """Note that users were seen, to the hour."""
    await database.execute(_SEEN, users=list(users))
