"""The gateway's scripts: Python values in, named answers out."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.gateway.budget.charging import Bounds
from services.gateway.budget.models import Ask, RateLimits, Reservation
from services.gateway.budget.refusals import Refusal
from services.gateway.redis.executor import Executor
from services.gateway.tokens.models import Principal
from shared.domain.identity import split_user
from shared.domain.service_types import ServiceType
from shared.state import layout
from shared.state.layout import SHARD_KEYS
from shared.state.limits import limits_of
from shared.state.packed import LedgerRow, Unwritten, parse_outbox, total_name
from shared.state.refusals import Word
from shared.state.script import Script, ScriptCall
from shared.state.totals import Total

_ADMIT, _SETTLE, _RENEW, _REAP, _ACK = map(Script, ("admit", "settle", "renew", "reap", "ack"))
_SNAPSHOT, _LOAD, _STATE, _SWEEP = map(Script, ("snapshot", "load", "state", "sweep"))
_TOTALS, _TOTALS_BEGIN, _TOTALS_LOAD = map(Script, ("totals", "totals_begin", "totals_load"))
_SUMS, _SUMS_TELL = map(Script, ("sums", "sums_tell"))
SCRIPTS = (
    *(_ADMIT, _SETTLE, _RENEW, _REAP, _ACK),
    *(_SNAPSHOT, _LOAD, _STATE, _SWEEP),
    *(_TOTALS, _TOTALS_BEGIN, _TOTALS_LOAD, _SUMS, _SUMS_TELL),
)

_FIRST = SHARD_KEYS[0]
_LIMIT = 10**12  # of completion tokens: still exact in Lua, and more than any model makes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The start of a rebuild: versions, Redis's clock, and by id the rows that may not be in the ledger yet."""

    user_version: str
    identity_version: str
    now_ms: int
    rows: dict[str, Unwritten]


@dataclass(frozen=True, slots=True)
class UserBuild:
    """A user's state as PostgreSQL has it.

    ``newest_index`` is the newest period of a ledger row, later than ``period_index`` only when the clock went back;
    ``revoked_tokens`` has the seconds after which each expires; ``exception`` is packed, or empty. Tokens issued before
    ``tokens_from``, in Unix time, are refused.
    """

    tier: str
    period_seconds: int
    period_index: int
    spent_nano: int
    newest_index: int
    standing: layout.Standing
    revoked_tokens: Mapping[str, int]
    exception: str = ""
    tokens_from: int = 0


class Expected(NamedTuple):
    """The tier that a user is expected to have, its row, and the money of its exception beside it."""

    name: str
    row: ServiceType
    extra_nano: int
    enforced: bool

    @property
    def budget_nano(self) -> int:
        return self.row.max_budget_nano + self.extra_nano


class Expired(NamedTuple):
    """A request whose lease ended."""

    id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """The result of a sweep: what dead gateways left in a shard."""

    cursor: str
    waiting: int  # rows in the whole outbox
    oldest_ms: int
    expired: list[Expired]
    rows: list[LedgerRow]


@dataclass(frozen=True, slots=True)
class Sums:
    """The totals as some gateway read them, each with the time of that; ``mine``: this gateway is to read them now."""

    now_ms: int
    mine: bool
    known: dict[str, tuple[int, Total]]


@dataclass(frozen=True, slots=True)
class TotalsBegun:
    """A shard when its sums were emptied, and the time of that by Redis's clock.

    ``open`` has the total, the time of admission in ms and the reserved amount of each open request.
    """

    now_ms: int
    open: list[tuple[str, int, int]]
    rows: list[LedgerRow]


class BudgetScripts:
    """Runs the scripts. Every method raises ``DependencyUnavailable("redis")``, and then the outcome is unknown."""

    def __init__(self, executor: Executor, lease: float, outbox_limit: int = 0) -> None:
        """:param outbox_limit: rows of a shard that may wait for PostgreSQL before admissions stop; 0: any number."""
        self.executor = executor
        self._lease_ms = int(lease * 1000)
        self._outbox_limit = outbox_limit

    async def admit(
        self, ask: Ask, expected: Expected, bounds: Bounds, room: int | None = None
    ) -> Reservation | Refusal:
        """Decide about a request, and reserve its worst case.

        :param expected: the limits that the user is expected to have.
        :param room: the rest of the total budget, in nano-dollars.
        """
        principal, tier = ask.principal, expected.row
        user_id = principal.user_id
        keys = layout.of_user(user_id)
        total = total_name(principal.service_type)
        call = _ADMIT.call(
            user=keys.user(user_id),
            identity=keys.identity(principal.identity),
            token=keys.token(principal.jti),
            requests_window=keys.requests_window(user_id),
            tokens_window=keys.tokens_window(user_id),
            leases=keys.leases,
            outbox=keys.outbox,
            tombstone=keys.tombstone(ask.id),
            totals=keys.totals,
            tier=expected.name,
            extra=expected.extra_nano,
            limits=limits_of(tier),
            enforced=int(expected.enforced),
            issued=principal.issued_at,
            id=ask.id,
            user_id=user_id,
            full=bounds.full,
            least=bounds.least,
            empty=bounds.empty,
            limit=min(ask.limit, _LIMIT),
            least_grant=bounds.least_grant,
            prompt_units=bounds.prompt_units,
            unit_price=bounds.grant_units,
            scale=bounds.scale,
            estimate=ask.estimated_prompt_tokens,
            choices=ask.n,
            total=total,
            prompt_bound=ask.prompt_bound,
            details=ask.details(tier.duration_seconds).pack(),
            lease=self._lease_ms,
            room="" if room is None else room,
            outbox_limit=self._outbox_limit,
        )
        reply: bytes = await self.executor.run(keys.number, call)
        word, *values = reply.split()
        if word == b"ok":
            grant, amount, now = int(values[0]), int(values[1]), int(values[2])
            would, limits = values[3].decode(), rate_limits(tier, values[4:])
            would_refuse = None if would == "-" else Word(would)
            return Reservation(ask, grant, amount, tier.duration_seconds, now, limits, total, would_refuse)
        reason = Word(word.decode())
        if reason is Word.TIER:
            return Refusal(reason, tier=values[0].decode(), extra_nano=int(values[1]))
        if not values:
            return Refusal(reason)
        return Refusal(reason, int(values[0]) / 1000, rate_limits(tier, values[1:]))

    def settle_call(self, row: LedgerRow) -> tuple[int, ScriptCall]:
        """The shard, and the call that settles a request there."""
        keys = layout.of_user(row.user_id)
        call = _SETTLE.call(
            user=keys.user(row.user_id),
            tokens_window=keys.tokens_window(row.user_id),
            leases=keys.leases,
            outbox=keys.outbox,
            tombstone=keys.tombstone(row.id),
            totals=keys.totals,
            id=row.id,
            user_id=row.user_id,
            cost=row.cost_nano,
            rate_tokens=row.rate_tokens,
            write="row" if row.admitted else "none",
            admitted=row.admitted_ms,
            total=row.total,
            row_end=row.end,
        )
        return keys.number, call

    async def renew(self, number: int, reservations: Sequence[Reservation], lapsed: Container[str] = ()) -> list[Word]:
        """Prolong the leases of a shard's open requests, and register again those that Redis forgot.

        :param lapsed: the ids of requests that have lost their lease: of these only the user and the token are checked.
        """
        keys = SHARD_KEYS[number]
        call = _RENEW.call(
            leases=keys.leases,
            totals=keys.totals,
            lease=self._lease_ms,
            each=[
                _RENEW.item(
                    user=keys.user(principal.user_id),
                    identity=keys.identity(principal.identity),
                    token=keys.token(principal.jti),
                    tombstone=keys.tombstone(reservation.id),
                    id=reservation.id,
                    user_id=principal.user_id,
                    issued=principal.issued_at,
                    reserved="" if reservation.id in lapsed else reservation.packed(),
                )
                for reservation in reservations
                for principal in (reservation.ask.principal,)
            ],
        )
        return [Word(reply.decode()) for reply in await self.executor.run(number, call)]

    async def sweep(self, number: int, who: str, claim: float, orphan: float, cursor: str) -> Sweep | None:
        """Find what dead gateways left in a shard; None if another gateway looks after it."""
        keys = SHARD_KEYS[number]
        call = _SWEEP.call(
            leases=keys.leases,
            outbox=keys.outbox,
            claim=keys.claim,
            totals=keys.totals,
            gateway=who,
            interval=int(claim * 1000),
            orphan=int(orphan * 1000),
            cursor=cursor,
        )
        reply = await self.executor.run(number, call)
        if not reply:
            return None
        next_cursor, waiting, oldest, members, rows = reply
        expired = [Expired(*member.decode().split(" ", 1)) for member in members]
        return Sweep(next_cursor.decode(), waiting, int(oldest), expired, parse_outbox(rows))

    async def reap(self, number: int, expired: Iterable[Expired]) -> list[LedgerRow]:
        """Charge requests whole whose lease ended. Returns the rows to write."""
        keys = SHARD_KEYS[number]
        call = _REAP.call(
            leases=keys.leases,
            outbox=keys.outbox,
            totals=keys.totals,
            each=[
                _REAP.item(
                    user=keys.user(one.user_id), tombstone=keys.tombstone(one.id), id=one.id, user_id=one.user_id
                )
                for one in expired
            ],
        )
        return parse_outbox(await self.executor.run(number, call))

    async def acknowledge(self, number: int, rows: Sequence[LedgerRow]) -> None:
        """Remove rows of one shard from the outbox, since the ledger has them."""
        keys = SHARD_KEYS[number]
        each = [_ACK.item(user=keys.user(row.user_id), id=row.id, start=row.start) for row in rows]
        await self.executor.run(number, _ACK.call(outbox=keys.outbox, each=each))

    async def snapshot(self, user_id: str) -> Snapshot:
        keys = layout.of_user(user_id)
        call = _SNAPSHOT.call(
            user=keys.user(user_id), identity=keys.identity(split_user(user_id)[0]), forgotten=keys.forgotten
        )
        version, identity_version, now, *fields = await self.executor.run(keys.number, call)
        texts = [field.decode() for field in fields]
        rows = {name: Unwritten.parse(value) for name, value in zip(texts[::2], texts[1::2], strict=True)}
        return Snapshot(version.decode(), identity_version.decode(), int(now), rows)

    async def load(self, user_id: str, snapshot: Snapshot, build: UserBuild) -> bool:
        """Set a user's state; False when something happened since the snapshot."""
        keys = layout.of_user(user_id)
        call = _LOAD.call(
            user=keys.user(user_id),
            identity=keys.identity(split_user(user_id)[0]),
            forgotten=keys.forgotten,
            requests_window=keys.requests_window(user_id),
            tokens_window=keys.tokens_window(user_id),
            user_version=snapshot.user_version,
            identity_version=snapshot.identity_version,
            tier=build.tier,
            exception=build.exception,
            duration=build.period_seconds,
            period=build.period_index,
            spent=build.spent_nano,
            newest=build.newest_index,
            standing=build.standing,
            tokens_from=build.tokens_from,
            each=[_LOAD.item(token=keys.token(jti), seconds=left) for jti, left in build.revoked_tokens.items()],
        )
        reply: bytes = await self.executor.run(keys.number, call)
        return reply == b"ok"

    async def state(self, principal: Principal) -> list[bytes]:
        """The words of ``state.lua``'s reply."""
        user_id = principal.user_id
        keys = layout.of_user(user_id)
        call = _STATE.call(
            user=keys.user(user_id),
            identity=keys.identity(principal.identity),
            token=keys.token(principal.jti),
            requests_window=keys.requests_window(user_id),
            tokens_window=keys.tokens_window(user_id),
            issued=principal.issued_at,
        )
        reply: bytes = await self.executor.run(keys.number, call)
        return reply.split()

    async def sums(self, names: Sequence[str], every: float) -> Sums:
        """The totals of all shards. Once in ``every`` seconds, one gateway is asked to read the shards."""
        call = _SUMS.call(sums=_FIRST.sums, every=int(every * 1000), each=[_SUMS.item(total=name) for name in names])
        now, mine, *texts = await self.executor.run(_FIRST.number, call)
        known = {}
        for name, text in zip(names, texts, strict=True):
            if text:
                read_at, *total = map(int, text.split())
                known[name] = read_at, Total(*total)
        return Sums(int(now), bool(mine), known)

    async def tell_sums(self, read_at_ms: int, sums: Mapping[str, Total]) -> None:
        each = [
            _SUMS_TELL.item(total=name, period=total.period_index, spent=total.spent_nano, reserved=total.reserved_nano)
            for name, total in sums.items()
        ]
        await self.executor.run(_FIRST.number, _SUMS_TELL.call(sums=_FIRST.sums, read_at=read_at_ms, each=each))

    async def totals(self, number: int, names: Sequence[str], since: Sequence[int]) -> list[int]:
        """A shard's clock in ms, then per name of a total: period, spent, reserved.

        :param since: times in ms, one for each name. The period is -1 where the sums were not built since then.
        """
        each = [_TOTALS.item(total=name, since=ms) for name, ms in zip(names, since, strict=True)]
        call = _TOTALS.call(totals=SHARD_KEYS[number].totals, each=each)
        return list(map(int, await self.executor.run(number, call)))

    async def begin_totals(self, number: int, build: str, names: Sequence[str], most: int) -> TotalsBegun | None:
        """Empty sums of a shard, in order to build them; None while more than ``most`` rows wait in its outbox."""
        keys = SHARD_KEYS[number]
        call = _TOTALS_BEGIN.call(
            totals=keys.totals,
            leases=keys.leases,
            outbox=keys.outbox,
            build=build,
            users=keys.users,
            most=most,
            each=[_TOTALS_BEGIN.item(total=name) for name in names],
        )
        reply = await self.executor.run(number, call)
        if not reply:
            return None
        now, found, rows = reply
        texts = [item.decode() for item in found]
        amounts = zip(texts[::3], texts[1::3], texts[2::3], strict=True)
        open_ = [(total, int(admitted), int(amount)) for total, admitted, amount in amounts]
        return TotalsBegun(int(now), open_, parse_outbox(rows))

    async def load_totals(
        self, number: int, build: str, names: Sequence[str], sums: Mapping[str, int], begun_ms: int
    ) -> None:
        """Add to the sums of a shard what was there before they were emptied, by field."""
        fields = {**{f"{layout.BUILT}{name}": begun_ms for name in names}, **sums}
        each = [_TOTALS_LOAD.item(field=field, amount=amount) for field, amount in fields.items()]
        await self.executor.run(number, _TOTALS_LOAD.call(totals=SHARD_KEYS[number].totals, build=build, each=each))


def rate_limits(tier: ServiceType, values: Sequence[bytes]) -> RateLimits:
    """The rates of an answer's last four words: requests used, ms to their reset, tokens used, ms to their reset."""
    requests, requests_reset, tokens, tokens_reset = map(int, values)
    return RateLimits(tier.rpm, requests, requests_reset, tier.tpm, tokens, tokens_reset)
