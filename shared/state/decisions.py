"""The changes that auth may make to a user's state, and the questions it may ask.

The gateway's scripts own the state. Auth changes three parts of it (an identity's standing, a user's tier, revoked
tokens) and records which users exist, so that they get in while PostgreSQL is down. Each change raises a version, so
that a gateway that is rebuilding the user from PostgreSQL at that moment starts again. Every function raises
``RedisError``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shared.domain.identity import user_id as join_user
from shared.domain.service_types import ServiceType
from shared.state import layout
from shared.state.layout import KNOWN_USER, SHARD_KEYS, VERSION, Standing, identity_key, token_key, user_key
from shared.state.limits import limits_of
from shared.state.packed import Excepted, total_name
from shared.state.refusals import Word
from shared.state.script import Script, ScriptCall
from shared.state.totals import Total, add_up
from shared.stores.redis import Client

_SET_STANDING, _SET_USER, _SPENT, _KNOWN, _REMEMBER, _FORGET = map(
    Script, ("set_standing", "set_user", "spent", "known", "remember", "forget")
)
_REFUSALS, _TOTALS = Script("refusals"), Script("totals")
SCRIPTS = (_SET_STANDING, _SET_USER, _SPENT, _KNOWN, _REMEMBER, _FORGET, _REFUSALS, _TOTALS)


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
    """A user as PostgreSQL knows it, for a decision about a user whose state is not in Redis yet."""

    tier: str
    standing: Standing
    spent_nano: int
    revoked_tokens: Sequence[str]
    exception: Excepted | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """The reasons that would refuse a request now, and the user's requests and tokens of the last minute.

    ``refusals`` maps each reason to the seconds after which it may no longer hold (0: time changes nothing).
    """

    refusals: dict[Word, float]
    requests: int
    tokens: int
    open_requests: int


class Oldest(msgspec.Struct, frozen=True):
    """The oldest tokens of an identity that are good: issued in this unix second, and of this generation; 0 for any.

    Only FxA's tokens have a generation.
    """

    issued: int = 0
    generation: int = 0


class Known(msgspec.Struct, frozen=True):
    """An identity as Redis knows it: its standing, if any, whether it has a user row, and the version of both.

    Unless ``user`` is true, the standing and the oldest tokens may be out of date.
    """

    standing: Standing | None
    user: bool
    version: str
    oldest: Oldest = Oldest()


_ANY = Oldest()


async def standing_version(client: Client, identity: str) -> str:
    """The version that ``set_standing`` can require; each call changes it."""
    reply: Any = client.hget(identity_key(identity), VERSION)
    version: bytes | None = await reply
    return version.decode() if version else "0"


async def set_standing(
    client: Client, identity: str, standing: Standing, oldest: Oldest = _ANY, *, version: str = ""
) -> bool:
    """Block (or admit again) an identity in all its service types, revoke its device, or refuse its older tokens.

    :param version: the answer of ``standing_version``. Redis may run an abandoned call after a later one; with an
        outdated version such a call does nothing.
    :returns: False when another call came in between, and nothing was set.
    :raises RedisError: not known to be applied.
    """
    call = _SET_STANDING.call(
        identity=identity_key(identity),
        standing=standing,
        tokens_from=oldest.issued,
        generation=oldest.generation,
        version=version,
    )
    return bool(await _eval(client, call))


async def set_user(client: Client, user_id: str, tier: str, exception: Excepted | None = None) -> None:
    """Give a user the money and rates of another service type, and an exception; open requests are not touched.

    :raises RedisError: not known to be applied.
    """
    packed = exception.pack() if exception else ""
    await _eval(client, _SET_USER.call(user=user_key(user_id), tier=tier, exception=packed))


async def revoke_token(client: Client, identity: str, jti: str, expires_at: float) -> None:
    """Have every gateway refuse a token until it would have expired.

    :raises RedisError: not known to be applied.
    """
    seconds = int(expires_at - time.time()) + 1
    if seconds > 0:
        await client.set(token_key(identity, jti), "1", ex=seconds)


async def read_users(client: Client, user_ids: Sequence[str]) -> list[UserState | None]:
    """The spent and reserved amounts of users in the current period; None for a user without state in Redis.

    Such a user has nothing reserved, and the ledger has everything that it spent.
    """
    rows = await _eval_all(client, [_SPENT.call(user=user_key(user_id)) for user_id in user_ids])
    return [_parse(row) if row is not None else None for row in rows]


def _parse(row: list[Any]) -> UserState:
    tier, seconds, index, spent, reserved, now = row
    period_seconds, current = int(seconds), int(now) // int(seconds)
    same = current == int(index)
    return UserState(tier.decode(), period_seconds, current, int(spent) if same else 0, int(reserved) if same else 0)


async def known(client: Client, identity: str, service_type: str) -> Known:
    return read_known(await _eval(client, ask_known(identity, service_type)))


def ask_known(identity: str, service_type: str) -> ScriptCall:
    """The call whose reply ``read_known`` reads."""
    keys = layout.of_identity(identity)
    return _KNOWN.call(
        identity=keys.identity(identity), forgotten=keys.forgotten, known_user=f"{KNOWN_USER}{service_type}"
    )


def read_known(reply: Any) -> Known:
    standing, user, version, issued, generation = reply
    oldest = Oldest(int(issued), int(generation))
    return Known(Standing(standing.decode()) if standing else None, bool(user), version.decode(), oldest)


async def remember(
    client: Client, identity: str, service_type: str, standing: Standing, version: str, oldest: Oldest = _ANY
) -> bool:
    """Store what PostgreSQL answered after ``version`` was read, unless a decision has changed since.

    :returns: whether it was stored.
    """
    keys = layout.of_identity(identity)
    call = _REMEMBER.call(
        identity=keys.identity(identity),
        forgotten=keys.forgotten,
        version=version,
        standing=standing,
        tokens_from=oldest.issued,
        generation=oldest.generation,
        known_user=f"{KNOWN_USER}{service_type}" if standing is Standing.GOOD else "",
    )
    return bool(await _eval(client, call))


async def forget_others(client: Client, identity: str, users: Sequence[str]) -> None:
    """Forget the users of an identity that are not among ``users``."""
    key = identity_key(identity)
    fields: Any = await client.hkeys(key)
    known_users = [name for name in fields if name.startswith(KNOWN_USER.encode())]
    gone = [name for name in known_users if join_user(identity, name.decode().removeprefix(KNOWN_USER)) not in users]
    if gone:
        await client.hdel(key, *gone)


async def forget(client: Client, identity: str, service_types: Sequence[str]) -> int:
    """Delete all state of an identity and of its users, unless requests of theirs are open or not in the ledger yet.

    :returns: the number of such requests; while there are any, the identity is blocked, which ends them.
    :raises RedisError: not known to be done.
    """
    keys = layout.of_identity(identity)
    users = [join_user(identity, service_type) for service_type in service_types]
    call = _FORGET.call(
        identity=keys.identity(identity),
        forgotten=keys.forgotten,
        standing=Standing.BLOCKED,
        each=[
            _FORGET.item(
                user=keys.user(user), requests_window=keys.requests_window(user), tokens_window=keys.tokens_window(user)
            )
            for user in users
        ],
    )
    return int(await _eval(client, call))


async def outlook(
    client: Client, user_id: str, rows: Mapping[str, ServiceType], recorded: Recorded, *, least: int, empty: int
) -> Outlook | None:
    """The reasons that refuse a user's request for ``least`` nano-dollars, found by the code that admits requests.

    :param empty: the amount that the request would reserve without its prompt.
    :param rows: the service types by name.
    :returns: None when neither the user's tier nor its service type is among them.
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
            limits=limits_of(row),
            enforced=int(row.enforces(time.time())),
            least=least,
            empty=empty,
            room="" if room is None else room,
            recorded_standing=recorded.standing,
            recorded_spent=recorded.spent_nano,
            recorded_exception=recorded.exception.pack() if recorded.exception else "",
            each=[_REFUSALS.item(token=keys.token(jti)) for jti in recorded.revoked_tokens],
        )
        found, *usage = await _eval(client, call)
        if found != b"tier":
            break
        tier = usage[0].decode()  # the tier was changed in PostgreSQL or Redis in the meantime
    reasons = {Word(reason.decode()): int(wait) / 1000 for reason, wait in zip(found[::2], found[1::2], strict=True)}
    return Outlook({**reasons, **refusals}, *map(int, usage))


async def _total(
    client: Client, row: ServiceType | None, least: int, empty: int
) -> tuple[dict[Word, float], int | None]:
    """What the service type's total budget refuses, and what it leaves; neither without such a budget."""
    name = total_name(row) if row is not None else ""
    if row is None or not name:
        return {}, None
    found = await _sums(client, [name])
    total = add_up([name], found).get(name)
    if total is None:
        return {Word.TOTAL_UNKNOWN: 1}, None
    refusal = total.refusal(row, least, empty, max(reply[0] for reply in found) / 1000)
    return (dict([refusal]), None) if refusal else ({}, total.room(row))


async def totals(client: Client, rows: Sequence[ServiceType]) -> dict[str, Total]:
    """What all users of service types with a total budget have spent, by name; without those that Redis has lost."""
    names = {total_name(row): row.name for row in rows}
    found = add_up(list(names), await _sums(client, list(names)))
    return {names[name]: total for name, total in found.items()}


async def _sums(client: Client, names: Sequence[str]) -> list[list[int]]:
    """What each shard has of these totals, behind Redis's clock."""
    each = [_TOTALS.item(total=name, since=0) for name in names]
    calls = [_TOTALS.call(totals=shard.totals, each=each) for shard in SHARD_KEYS]
    # EVAL would need the right to write them, which auth lacks
    replies = await _eval_all(client, calls, command="EVAL_RO")
    return [list(map(int, reply)) for reply in replies]


async def _eval(client: Client, call: ScriptCall) -> Any:
    reply: Any = client.eval(call.script.source, len(call.keys), *call.keys, *call.argv(""))
    return await reply


async def _eval_all(client: Client, calls: Sequence[ScriptCall], *, command: str = "EVAL") -> list[Any]:
    async with client.pipeline(transaction=False) as pipeline:
        for call in calls:
            pipeline.execute_command(command, call.script.source, len(call.keys), *call.keys, *call.argv(""))
        return await pipeline.execute()
