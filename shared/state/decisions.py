"""What auth may do to a user's state, and what it may ask.

The gateway's scripts own the state. Auth changes three things of it (an identity's standing, a user's tier, revoked
tokens) and remembers in it which users there are, so that they get in while PostgreSQL is down. A change bumps a
version, so that a gateway that rebuilds the user from PostgreSQL at that moment starts again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.domain.identity import user_id as join_user
from shared.domain.service_types import ServiceType
from shared.state import layout
from shared.state.layout import KNOWN_USER, SHARD_KEYS, VERSION, Standing, identity_key, token_key, user_key
from shared.state.packed import total_name
from shared.state.script import Script, ScriptCall
from shared.state.totals import add_up
from shared.stores.redis import Client

_SET_STANDING, _SET_TIER, _SPENT, _KNOWN, _REMEMBER = map(
    Script, ("set_standing", "set_tier", "spent", "known", "remember")
)
_REFUSALS, _TOTALS = Script("refusals"), Script("totals")


@dataclass(frozen=True, slots=True)
class UserState:
    """A user's current period, as the gateways count it. Money in nano-dollars."""

    tier: str
    period_seconds: int
    period_index: int
    spent_nano: int
    reserved_nano: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """What PostgreSQL has of a user: for a decision about one whose state would be built first."""

    tier: str
    standing: Standing
    spent_nano: int
    revoked_tokens: Sequence[str]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a request would be refused for at this moment, and the last minute of its user.

    ``refusals`` has the seconds after which it may be over (0: time changes nothing), by reason: ``blocked``,
    ``revoked`` (the device), ``token`` (those alone that are revoked), ``streams``, ``rpm``, ``tpm``, ``exceeded``,
    ``large`` (a smaller prompt would fit), ``reserved``; of all users together ``total_exceeded``, ``total_large``,
    ``total_reserved``, and ``total_unknown``.
    """

    refusals: dict[str, float]
    requests: int
    tokens: int
    open_requests: int


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
    return bool(
        await _eval(client, _SET_STANDING.call(identity=identity_key(identity), standing=standing, version=version))
    )


async def set_tier(client: Client, user_id: str, tier: str) -> None:
    """Give a user the money and rates of another service type; open requests are not touched.

    :raises RedisError: not known to be applied.
    """
    await _eval(client, _SET_TIER.call(user=user_key(user_id), tier=tier))


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
    rows = await _eval_all(client, [_SPENT.call(user=user_key(user_id)) for user_id in user_ids])
    return [_parse(row) if row is not None else None for row in rows]


def _parse(row: list[Any]) -> UserState:
    tier, seconds, index, spent, reserved, now = row
    period_seconds, current = int(seconds), int(now) // int(seconds)
    same = current == int(index)
    return UserState(tier.decode(), period_seconds, current, int(spent) if same else 0, int(reserved) if same else 0)


async def known(client: Client, identity: str, service_type: str) -> Known:
    """:raises RedisError:"""
    call = _KNOWN.call(identity=identity_key(identity), known_user=f"{KNOWN_USER}{service_type}")
    standing, user, version = await _eval(client, call)
    return Known(Standing(standing.decode()) if standing else None, bool(user), version.decode())


async def remember(client: Client, identity: str, service_type: str, standing: Standing, version: str) -> None:
    """Keep what PostgreSQL said after ``version`` was read; nothing when something was decided since.

    :raises RedisError:
    """
    field = f"{KNOWN_USER}{service_type}" if standing is Standing.GOOD else ""
    call = _REMEMBER.call(identity=identity_key(identity), version=version, standing=standing, known_user=field)
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


async def outlook(
    client: Client, user_id: str, rows: Mapping[str, ServiceType], recorded: Recorded, *, least: int, empty: int
) -> Outlook | None:
    """What a request of a user is refused for that has to reserve ``least`` nano-dollars, by the code that admits.

    :param empty: what it would have to reserve without its prompt.
    :param rows: the service types by their name.
    :returns: None when neither the user's tier nor its service type is among them.
    :raises RedisError:
    """
    identity, _, service_type = user_id.rpartition(":")
    keys, tier = layout.of_user(user_id), recorded.tier
    refusals, room = await _total(client, rows.get(service_type), least, empty)
    while True:
        row = rows.get(tier) or rows.get(service_type)
        if row is None:
            return None
        call = _REFUSALS.call(
            user=keys.user(user_id),
            identity=keys.identity(identity),
            requests_window=keys.requests_window(user_id),
            tokens_window=keys.tokens_window(user_id),
            tier=tier,
            duration=row.duration_seconds,
            budget=row.max_budget_nano,
            rpm=row.rpm,
            tpm=row.tpm,
            max_streams=row.max_streams,
            least=least,
            empty=empty,
            room=room,
            recorded_standing=recorded.standing,
            recorded_spent=recorded.spent_nano,
            each=[_REFUSALS.item(token=keys.token(jti)) for jti in recorded.revoked_tokens],
        )
        found, *usage = await _eval(client, call)
        if found != b"tier":
            break
        tier = usage[0].decode()  # Redis has not been told of a change yet, or was told meanwhile
    reasons = {reason.decode(): int(wait) / 1000 for reason, wait in zip(found[::2], found[1::2], strict=True)}
    return Outlook({**reasons, **refusals}, *map(int, usage))


async def _total(client: Client, row: ServiceType | None, least: int, empty: int) -> tuple[dict[str, float], int | str]:
    """What the total budget of a service type refuses, or leaves; empty where it has none to say."""
    name = total_name(row) if row is not None else ""
    if row is None or not name:
        return {}, ""
    calls = [_TOTALS.call(totals=shard.totals, each=[_TOTALS.item(total=name)]) for shard in SHARD_KEYS]
    replies = await _eval_all(client, calls)
    found = [list(map(int, reply)) for reply in replies]
    total = add_up([name], found).get(name)
    if total is None:
        return {"total_unknown": 1}, ""
    refusal = total.refusal(row, least, empty)
    if refusal is None:
        return {}, total.room(row)
    ends = (total.period_index + 1) * row.duration_seconds - max(reply[0] for reply in found) / 1000
    return {f"total_{refusal}": {"exceeded": ends, "large": 0.0, "reserved": 1.0}[refusal]}, ""


async def _eval(client: Client, call: ScriptCall) -> Any:
    reply: Any = client.eval(call.script.source, len(call.keys), *call.keys, *call.argv(""))
    return await reply


async def _eval_all(client: Client, calls: Sequence[ScriptCall]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipeline:
        for call in calls:
            pipeline.eval(call.script.source, len(call.keys), *call.keys, *call.argv(""))
        return await pipeline.execute()
