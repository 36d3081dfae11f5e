"""Where a user's budget lives in Redis, and what auth may do to it.

All keys of an identity carry its shard's hash tag. The gateway's scripts (``services/gateway/budget/scripts``) own
the state; auth changes three things of it (block, tier, revoked tokens) and reads it, with the functions here.
A change first bumps a version, so that a gateway that rebuilds the user from PostgreSQL at that moment starts anew.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared.domain.identity import shard_tag, split_user, tag
from shared.stores.redis import Client

Block = Literal["0", "blocked", "revoked"]


def prefix(identity: str) -> str:
    """What every key of an identity starts with."""
    return f"mlpa:{tag(identity)}:"


def shard_key(shard: int, name: str) -> str:
    """A key that a shard has once: ``leases``, ``outbox``, ``totals``, ``claim``."""
    return f"mlpa:{shard_tag(shard)}:{name}"


def user_key(user_id: str) -> str:
    """HASH, the state of a user."""
    return f"{prefix(split_user(user_id)[0])}u:{user_id}"


def identity_key(identity: str) -> str:
    """HASH, what holds for an identity in all its service types."""
    return f"{prefix(identity)}i:{identity}"


def token_key(identity: str, jti: str) -> str:
    """STRING, there while a revoked token would still be valid."""
    return f"{prefix(identity)}j:{jti}"


# A state that no gateway has built yet gets the version alone, and goes again soon.
_SET_BLOCK = """
if ARGV[2] and (redis.call('HGET', KEYS[1], 'v') or '0') ~= ARGV[2] then return 0 end
redis.call('HINCRBY', KEYS[1], 'v', 1)
redis.call('HSET', KEYS[1], 'blk', ARGV[1])
if redis.call('TTL', KEYS[1]) < 0 then redis.call('EXPIRE', KEYS[1], 172800) end
return 1
"""
_SET_TIER = """
redis.call('HINCRBY', KEYS[1], 'v', 1)
if redis.call('HEXISTS', KEYS[1], 'ep') == 1 then redis.call('HSET', KEYS[1], 'tier', ARGV[1]) end
if redis.call('TTL', KEYS[1]) < 0 then redis.call('EXPIRE', KEYS[1], 172800) end
return 1
"""
# The run id tells whether the state was built under this server's life: else PostgreSQL is to be asked.
_READ = """
local user = redis.call('HMGET', KEYS[1], 'ep', 'tier', 'dur', 'idx', 'spent', 'res')
if not user[1] or not string.find(redis.call('INFO', 'server'), 'run_id:' .. user[1], 1, true) then return false end
return {user[2], user[3], user[4], user[5], user[6], redis.call('TIME')[1]}
"""


@dataclass(frozen=True, slots=True)
class UserState:
    """A user's current period, as the gateways count it. Money in nano-dollars."""

    tier: str
    period_seconds: int
    period_index: int
    spent_nano: int
    reserved_nano: int


async def block_version(client: Client, identity: str) -> str:
    """What a ``set_block`` can be bound to; each one changes it.

    :raises RedisError:
    """
    reply: Any = client.hget(identity_key(identity), "v")
    version: bytes | None = await reply
    return version.decode() if version else "0"


async def set_block(client: Client, identity: str, block: Block, *, version: str | None = None) -> bool:
    """Block (or admit again) an identity in all its service types: ``0``, ``blocked``, or ``revoked`` for a device.

    :param version: of ``block_version``. Redis may run a call that was given up after a later one; bound to a version,
        that does nothing.
    :returns: whether it is set; False when another call came between.
    :raises RedisError: not known to be applied.
    """
    bound = () if version is None else (version,)
    return bool(await _eval(client, _SET_BLOCK, identity_key(identity), block, *bound))


async def set_tier(client: Client, user_id: str, tier: str) -> None:
    """Give a user the money and rates of another service type; open requests are not touched.

    :raises RedisError: not known to be applied.
    """
    await _eval(client, _SET_TIER, user_key(user_id), tier)


async def revoke_token(client: Client, identity: str, jti: str, expires_at: float) -> None:
    """Have every gateway refuse a token until it would have expired.

    :raises RedisError: not known to be applied.
    """
    seconds = int(expires_at - time.time()) + 1
    if seconds > 0:
        await client.set(token_key(identity, jti), "1", ex=seconds)


async def read_user(client: Client, user_id: str) -> UserState | None:
    """What a user spent and reserved in the current period; None when no gateway has its state in Redis.

    Then nothing is reserved, and the ledger has all that was spent.

    :raises RedisError:
    """
    return (await read_users(client, [user_id]))[0]


async def read_users(client: Client, user_ids: Sequence[str]) -> list[UserState | None]:
    """As ``read_user``, of many at once.

    :raises RedisError:
    """
    async with client.pipeline(transaction=False) as pipeline:
        for user_id in user_ids:
            pipeline.eval(_READ, 1, user_key(user_id))
        rows: list[Any] = await pipeline.execute()
    return [_parse(row) if row is not None else None for row in rows]


def _parse(row: list[Any]) -> UserState:
    tier, seconds, index, spent, reserved, now = row
    period_seconds, current = int(seconds), int(now) // int(seconds)
    same = current == int(index)
    return UserState(tier.decode(), period_seconds, current, int(spent) if same else 0, int(reserved) if same else 0)


async def _eval(client: Client, script: str, key: str, *args: str) -> Any:
    reply: Any = client.eval(script, 1, key, *args)
    return await reply
