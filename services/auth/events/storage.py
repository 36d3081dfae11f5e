"""The SQL of deliveries: an accepted token is remembered for as long as it could be sent again.

Every function raises ``DatabaseUnavailable``.
"""

from __future__ import annotations

from datetime import UTC, datetime

from shared.stores.postgres import Database, Query, Transaction

_TAKE = Query.text(
    "insert into fxa_deliveries (jti, expires_at) values (:jti, :expires_at) on conflict do nothing returning jti"
)
_TAKEN = Query.text("select exists(select from fxa_deliveries where jti = :jti) as taken")
_CLEAR = Query.text("delete from fxa_deliveries where expires_at < now() - interval '1 minute'")


async def take(transaction: Transaction, jti: str, expires_at: float) -> bool:
    """Remember a delivery.

    :returns: False if it was taken before; one that is being taken is waited for.
    """
    until = datetime.fromtimestamp(expires_at, UTC)
    return (await transaction.fetch_one(_TAKE, jti=jti, expires_at=until)) is not None


async def is_taken(database: Database, jti: str) -> bool:
    return bool((await database.fetch(_TAKEN, jti=jti))[0]["taken"])


async def clear_expired(database: Database) -> None:
    """Forget the deliveries that are too old to be accepted again."""
    await database.execute(_CLEAR)
