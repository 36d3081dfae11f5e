"""Users that Redis knows, so that they get in while PostgreSQL is down.

In the hash of an identity: ``blk``, its standing, which the gateways read too, and ``u:<service type>`` once there is
a user row. That field's value is the run id of the server that it was written to: after a restart or a failover, which
may have lost a decision, PostgreSQL is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.auth.standing.storage import Standing
from shared.budget_state import identity_key
from shared.stores.redis import Client

#: Seconds for which Redis may answer for PostgreSQL about a user.
_TTL = 172_800


_RUN = "local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')\n"
_READ = (
    _RUN
    + """
local state = redis.call('HMGET', KEYS[1], 'blk', ARGV[1], 'v')
return {state[1], state[2] == run and 1 or 0, run .. ':' .. (state[3] or '')}
"""
)
# A decision bumps the version (shared/budget_state.py): an earlier answer of PostgreSQL must not be stored after it.
_REMEMBER = (
    _RUN
    + """
if run .. ':' .. (redis.call('HGET', KEYS[1], 'v') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'blk', ARGV[2])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], ARGV[3], run) end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
"""
)


@dataclass(frozen=True, slots=True)
class Known:
    """Redis's knowledge of a user: the standing, if any, whether there is a user row, and the version of both.

    The standing may be out of date unless ``user``.
    """

    standing: Standing | None
    user: bool
    version: str


async def read(redis: Client, identity: str, service_type: str) -> Known:
    """:raises RedisError: Redis could not be asked."""
    reply: Any = redis.eval(_READ, 1, identity_key(identity), f"u:{service_type}")
    blocked, known, version = await reply
    return Known(Standing(blocked.decode()) if blocked else None, bool(known), version.decode())


async def remember(redis: Client, identity: str, service_type: str, standing: Standing, version: str) -> None:
    """Store PostgreSQL's answer, unless there was a decision since ``version`` was read.

    :raises RedisError: Redis could not be asked.
    """
    field = f"u:{service_type}" if standing is Standing.GOOD else ""
    reply: Any = redis.eval(_REMEMBER, 1, identity_key(identity), version, standing.value, field, str(_TTL))
    await reply


async def forget_others(redis: Client, identity: str, users: list[str]) -> None:
    """Forget the users of an identity that are not among ``users`` any more.

    :raises RedisError: Redis could not be asked.
    """
    key = identity_key(identity)
    kept = {f"u:{user.rpartition(':')[2]}" for user in users}
    fields: Any = await redis.hkeys(key)
    gone = [name for name in fields if name.startswith(b"u:") and name.decode() not in kept]
    if gone:
        await redis.hdel(key, *gone)
