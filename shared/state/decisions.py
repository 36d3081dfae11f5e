"""What auth may do to a user's state, and what it may ask.

The gateway's scripts own the state. Auth changes three things of it (an identity's standing, a user's tier, revoked
tokens) and remembers in it which users there are, so that they get in while PostgreSQL is down. A change bumps a
version, so that a gateway that rebuilds the user from PostgreSQL at that moment starts again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.domain.identity import user_id as join_user
from shared.state.layout import KNOWN_USER, VERSION, Standing, identity_key, token_key, user_key
from shared.state.script import Script, ScriptCall
from shared.stores.redis import Client

_SET_STANDING, _SET_TIER, _SPENT, _KNOWN, _REMEMBER = map(
    Script, ("set_standing", "set_tier", "spent", "known", "remember")
)


@dataclass(frozen=True, slots=True)
class UserState:
    """A user's current period, as the gateways count it. Money in nano-dollars."""

    tier: str
    period_seconds: int
    period_index: int
    spent_nano: int
    reserved_nano: int


@dataclass(frozen=True, slots=True)
class Known:
    """What Redis has: the standing, if any, whether it knows of a user row, and the version that this was read at.

    The standing may be out of date unless ``user``.
    """

    standing: Standing | None
    user: bool
    version: str


async def standing_version(client: Client, identity: str) -> str:
    """What a ``set_standing`` can be bound to; each one changes it.

    :raises RedisError:
    """
    reply: Any = client.hget(identity_key(identity), VERSION)
    version: bytes | None = await reply
    return version.decode() if version else "0"


async def set_standing(client: Client, identity: str, standing: Standing, *, version: str = "") -> bool:
    """Block (or admit again) an identity in all its service types, or revoke its device.

    :param version: of ``standing_version``. Redis may run a call that was given up after a later one; bound to a
        version, that does nothing.
    :returns: whether it is set; False when another call came between.
    :raises RedisError: not known to be applied.
    """
    return bool(await _eval(client, _SET_STANDING(identity=identity_key(identity), standing=standing, version=version)))


async def set_tier(client: Client, user_id: str, tier: str) -> None:
    """Give a user the money and rates of another service type; open requests are not touched.

    :raises RedisError: not known to be applied.
    """
    await _eval(client, _SET_TIER(user=user_key(user_id), tier=tier))


async def revoke_token(client: Client, identity: str, jti: str, expires_at: float) -> None:
    """Have every gateway refuse a token until it would have expired.

    :raises RedisError: not known to be applied.
    """
    seconds = int(expires_at - time.time()) + 1
    if seconds > 0:
        await client.set(token_key(identity, jti), "1", ex=seconds)


async def read_users(client: Client, user_ids: Sequence[str]) -> list[UserState | None]:
    """What users spent and reserved in the current period; None for one whose state no gateway has built in Redis.

    Then nothing is reserved, and the ledger has all that was spent.

    :raises RedisError:
    """
    rows = await _eval_all(client, [_SPENT(user=user_key(user_id)) for user_id in user_ids])
    return [_parse(row) if row is not None else None for row in rows]


def _parse(row: list[Any]) -> UserState:
    tier, seconds, index, spent, reserved, now = row
    period_seconds, current = int(seconds), int(now) // int(seconds)
    same = current == int(index)
    return UserState(tier.decode(), period_seconds, current, int(spent) if same else 0, int(reserved) if same else 0)


async def known(client: Client, identity: str, service_type: str) -> Known:
    """:raises RedisError:"""
    call = _KNOWN(identity=identity_key(identity), known_user=f"{KNOWN_USER}{service_type}")
    standing, user, version = await _eval(client, call)
    return Known(Standing(standing.decode()) if standing else None, bool(user), version.decode())


async def remember(client: Client, identity: str, service_type: str, standing: Standing, version: str) -> None:
    """Keep what PostgreSQL said after ``version`` was read; nothing when something was decided since.

    :raises RedisError:
    """
    field = f"{KNOWN_USER}{service_type}" if standing is Standing.GOOD else ""
    call = _REMEMBER(identity=identity_key(identity), version=version, standing=standing, known_user=field)
    await _eval(client, call)


async def forget_others(client: Client, identity: str, users: Sequence[str]) -> None:
    """Forget the users of an identity that are not among ``users``.

    :raises RedisError:
    """
    key = identity_key(identity)
    fields: Any = await client.hkeys(key)
    known_users = [name for name in fields if name.startswith(KNOWN_USER.encode())]
    gone = [name for name in known_users if join_user(identity, name.decode().removeprefix(KNOWN_USER)) not in users]
    if gone:
        await client.hdel(key, *gone)


async def _eval(client: Client, call: ScriptCall) -> Any:
    reply: Any = client.eval(call.script.source, len(call.keys), *call.keys, *call.args)
    return await reply


async def _eval_all(client: Client, calls: Sequence[ScriptCall]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipeline:
        for call in calls:
            pipeline.eval(call.script.source, len(call.keys), *call.keys, *call.args)
        return await pipeline.execute()
