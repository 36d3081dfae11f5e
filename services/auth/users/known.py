"""Users whom Redis knows, so that they get in while PostgreSQL is away.

In the hash of an identity: ``blk``, its standing, which the gateways read too, and ``u:<service type>`` once there is
a user row.
"""

from __future__ import annotations

from typing import Any

from services.auth.users.storage import Standing
from shared.budget_state import identity_key
from shared.redis import Client

#: How long Redis may speak for PostgreSQL about a user, in seconds.
_TTL = 172_800


async def read(redis: Client, identity: str, service_type: str) -> tuple[Standing | None, bool]:
    """The standing, when Redis has it, and whether the user is known.

    :raises RedisError:
    """
    values: Any = await redis.hmget(identity_key(identity), ["blk", f"u:{service_type}"])
    blocked, known = values
    return (Standing(blocked.decode()) if blocked else None), known is not None


async def remember(redis: Client, identity: str, service_type: str, standing: Standing) -> None:
    """Only what isn't there: a block that came meanwhile stays.

    :raises RedisError:
    """
    key = identity_key(identity)
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.hsetnx(key, "blk", standing.value)
        if standing is Standing.GOOD:
            pipeline.hset(key, f"u:{service_type}", "1")
        pipeline.expire(key, _TTL)
        await pipeline.execute()


async def forget_others(redis: Client, identity: str, users: list[str]) -> None:
    """Forget the users of an identity that are not among ``users`` any more.

    :raises RedisError:
    """
    key = identity_key(identity)
    kept = {f"u:{user.rpartition(':')[2]}" for user in users}
    fields: Any = await redis.hkeys(key)
    gone = [name for name in fields if name.startswith(b"u:") and name.decode() not in kept]
    if gone:
        await redis.hdel(key, *gone)
