"""The adapter of a request's scripts: Python values in, named answers out. Those of total budgets: ``totals.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from services.gateway.budget.charging import Bounds
from services.gateway.budget.models import Ask, RateLimits, Reservation
from services.gateway.budget.rows import Row, Settlement, details, pack_reservation, parse_row, total_field
from services.gateway.redis.executor import Executor, ScriptCall
from services.gateway.redis.wire import Script
from shared.budget_state import prefix, shard_key
from shared.domain.identity import shard, split_user
from shared.domain.service_types import ServiceType

_ADMIT, _SETTLE, _RENEW, _REAP, _ACK = (Script(name) for name in ("admit", "settle", "renew", "reap", "ack"))
_SNAPSHOT, _LOAD, _STATE, _SWEEP = (Script(name) for name in ("snapshot", "load", "state", "sweep"))
SCRIPTS = (_ADMIT, _SETTLE, _RENEW, _REAP, _ACK, _SNAPSHOT, _LOAD, _STATE, _SWEEP)

_LIMIT = 10**12  # of completion tokens: still exact in Lua, and more than any model makes


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: ``load`` (rebuild first), ``tier`` (ask again with the row of ``tier``), ``blocked``, ``revoked`` (the
    device), ``token`` (revoked), ``settled`` (this id is over), or a limit: ``streams``, ``rpm``, ``tpm``,
    ``exceeded``, ``large`` (a smaller prompt would fit), ``reserved``.
    """

    reason: str
    tier: str = ""
    retry_after: float = 0
    rate_limits: RateLimits | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a rebuild starts from: versions, Redis's clock, and the rows that may not be in the ledger yet, as
    ``(cost, admitted ms)`` by id.
    """

    user_version: str
    identity_version: str
    now_ms: int
    rows: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a shard has left over: requests whose lease ended as (id, user id), rows as (id, entry)."""

    cursor: str
    oldest_ms: int
    expired: list[tuple[str, str]]
    rows: list[Row]


RenewalState = Literal["ok", "reaped", "settled", "blocked", "revoked", "token"]


class Admission:
    """Runs the scripts. Every method raises ``DependencyUnavailable("redis")``, and then the outcome is unknown."""

    def __init__(self, executor: Executor, lease: float) -> None:
        self.executor = executor
        self._lease_ms = str(int(lease * 1000))

    async def admit(
        self, ask: Ask, tier_name: str, tier: ServiceType, bounds: Bounds, room: int | None = None
    ) -> Reservation | Refusal:
        """Decide, and reserve. ``tier`` is the row for the tier that the user is expected to have; ``room`` is what the
        total budget leaves, in nano-dollars.
        """
        principal = ask.principal
        number, base, user = place(principal.user_id)
        total = total_field(principal.service_type)
        keys = (
            user,
            f"{base}i:{principal.identity}",
            f"{base}j:{principal.jti}",
            f"{base}w:{principal.user_id}",
            f"{base}t:{principal.user_id}",
            f"{base}leases",
            f"{base}d:{ask.id}",
            f"{base}totals",
        )
        args = (
            tier_name,
            str(tier.duration_seconds),
            str(tier.max_budget_nano),
            str(tier.rpm),
            str(tier.tpm),
            str(tier.max_streams),
            ask.id,
            principal.user_id,
            str(bounds.full),
            str(bounds.least),
            str(min(ask.limit, _LIMIT)),
            str(bounds.least_grant),
            str(bounds.prompt_units),
            str(bounds.grant_units),
            str(bounds.scale),
            str(ask.estimated_prompt_tokens),
            str(ask.n),
            total,
            str(ask.prompt_bound),
            details(ask, tier.duration_seconds),
            self._lease_ms,
            "" if room is None else str(room),
            str(bounds.empty),
        )
        reply: bytes = await self.executor.run(number, _ADMIT, keys, args)
        word, *values = reply.split()
        if word == b"ok":
            grant, amount, now = int(values[0]), int(values[1]), int(values[2])
            limits = rate_limits(tier, values[3:])
            return Reservation(ask, grant, amount, tier.duration_seconds, now, limits, total)
        reason = word.decode()
        if reason == "tier":
            return Refusal(reason, tier=values[0].decode())
        if not values:
            return Refusal(reason)
        return Refusal(reason, retry_after=int(values[0]) / 1000, rate_limits=rate_limits(tier, values[1:]))

    def settle_call(self, settlement: Settlement) -> ScriptCall:
        """What ``Executor.submit`` and ``run`` take to settle; ``settled_row`` reads the reply."""
        user_id = settlement.user_id
        number, base, user = place(user_id)
        keys = (
            user,
            f"{base}t:{user_id}",
            f"{base}leases",
            f"{base}outbox",
            f"{base}d:{settlement.id}",
            f"{base}totals",
        )
        args = (
            settlement.id,
            user_id,
            str(settlement.cost_nano),
            str(settlement.rate_tokens),
            "row" if settlement.admitted else "none",
            str(settlement.admitted_ms),
            settlement.total,
            settlement.row_end,
        )
        return number, _SETTLE, keys, args

    async def renew(self, number: int, reservations: Sequence[Reservation]) -> list[RenewalState]:
        """Prolong the leases of open requests of one shard; what Redis forgot of them it learns again."""
        base = shard_key(number, "")
        keys, args = [f"{base}leases", f"{base}totals"], [self._lease_ms]
        for reservation in reservations:
            principal = reservation.ask.principal
            keys += (
                f"{base}u:{principal.user_id}",
                f"{base}i:{principal.identity}",
                f"{base}j:{principal.jti}",
                f"{base}d:{reservation.id}",
            )
            args += (reservation.id, principal.user_id, pack_reservation(reservation))
        return [reply.decode() for reply in await self.executor.run(number, _RENEW, keys, args)]

    async def sweep(self, number: int, who: str, claim: float, orphan: float, cursor: str) -> Sweep | None:
        """What dead gateways left in a shard; None when another gateway looks after it."""
        base = shard_key(number, "")
        args = (who, str(int(claim * 1000)), str(int(orphan * 1000)), cursor)
        reply = await self.executor.run(number, _SWEEP, (f"{base}leases", f"{base}outbox", f"{base}claim"), args)
        if not reply:
            return None
        next_cursor, oldest, expired, rows = reply
        members = [member.decode().partition(" ") for member in expired]
        return Sweep(next_cursor.decode(), int(oldest), [(id_, user) for id_, _, user in members], rows_of(rows))

    async def reap(self, number: int, expired: Sequence[tuple[str, str]]) -> list[Row]:
        """Charge requests whole whose lease ended, as (id, user id); the rows to write."""
        base = shard_key(number, "")
        keys, args = [f"{base}leases", f"{base}outbox", f"{base}totals"], list[str]()
        for request, user_id in expired:
            keys += (f"{base}u:{user_id}", f"{base}d:{request}")
            args += (request, user_id)
        return rows_of(await self.executor.run(number, _REAP, keys, args))

    async def acknowledge(self, number: int, rows: Sequence[Row]) -> None:
        """Forget rows of one shard that are in the ledger now."""
        base = shard_key(number, "")
        keys, args = [f"{base}outbox"], list[str]()
        for row in rows:
            keys.append(f"{base}u:{row.user_id}")
            args += (row.id, row.start)
        await self.executor.run(number, _ACK, keys, args)

    async def snapshot(self, user_id: str) -> Snapshot:
        number, base, user = place(user_id)
        keys = (user, f"{base}i:{split_user(user_id)[0]}")
        version, identity_version, now, *fields = await self.executor.run(number, _SNAPSHOT, keys, ())
        rows = {}
        for name, value in zip(fields[::2], fields[1::2], strict=True):
            cost, _, admitted = value.partition(b"|")
            rows[name.decode()] = (int(cost), int(admitted))
        return Snapshot(version.decode(), identity_version.decode(), int(now), rows)

    async def load(
        self,
        user_id: str,
        snapshot: Snapshot,
        *,
        tier: str,
        seconds: int,
        index: int,
        spent: int,
        newest: int,
        block: str,
        revoked: Sequence[tuple[str, int]],
    ) -> bool:
        """Set a user's state; False when something happened since the snapshot.

        ``newest`` is the newest period of a ledger row, and ``revoked`` has (jti, seconds left).
        """
        number, base, user = place(user_id)
        keys = [user, f"{base}i:{split_user(user_id)[0]}", f"{base}w:{user_id}", f"{base}t:{user_id}"]
        keys += [f"{base}j:{jti}" for jti, _ in revoked]
        args = [
            snapshot.user_version,
            snapshot.identity_version,
            tier,
            str(seconds),
            str(index),
            str(spent),
            str(newest),
            block,
        ]
        args += [str(left) for _, left in revoked]
        reply: bytes = await self.executor.run(number, _LOAD, keys, args)
        return reply == b"ok"

    async def state(self, user_id: str, jti: str) -> list[bytes]:
        """The words of ``state.lua``'s reply."""
        number, base, user = place(user_id)
        identity = split_user(user_id)[0]
        keys = (user, f"{base}i:{identity}", f"{base}j:{jti}", f"{base}w:{user_id}", f"{base}t:{user_id}")
        reply: bytes = await self.executor.run(number, _STATE, keys, ())
        return reply.split()


@lru_cache(maxsize=65_536)
def place(user_id: str) -> tuple[int, str, str]:
    """Where a user's state is: (shard, prefix of its keys, the user's key)."""
    identity = user_id.rpartition(":")[0]
    base = prefix(identity)
    return shard(identity), base, f"{base}u:{user_id}"


def rate_limits(tier: ServiceType, values: Sequence[bytes]) -> RateLimits:
    """From the last four words of an answer: requests used, ms to their reset, tokens used, ms to their reset."""
    requests, requests_reset, tokens, tokens_reset = map(int, values)
    return RateLimits(tier.rpm, requests, requests_reset, tier.tpm, tokens, tokens_reset)


def rows_of(fields: Sequence[bytes]) -> list[Row]:
    return [parse_row(name.decode(), entry.decode()) for name, entry in zip(fields[::2], fields[1::2], strict=True)]
