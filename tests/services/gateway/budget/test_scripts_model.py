"""The scripts against a plain model of what PROTOCOL.md promises, on a clock that jumps, over whatever order of
events hypothesis thinks of."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from math import ceil, floor
from typing import Any

import msgspec
import redis
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.gateway.budget.charging import Bounds, Charge, bounds
from services.gateway.budget.models import Reservation
from services.gateway.budget.refusals import Refusal
from services.gateway.budget.scripts import BudgetScripts, Expected, Expired, UserBuild
from services.gateway.catalogue.prices import PricedModel
from services.gateway.tokens.models import Principal
from services.local.valkey import ValkeyServer
from shared.domain.identity import shard
from shared.domain.service_types import ServiceType
from shared.state import decisions, layout
from shared.state.decisions import Oldest
from shared.state.layout import Standing
from shared.state.packed import Excepted, LedgerRow
from tests.services.gateway.budget.clocked import ClockedClient, ClockedExecutor
from tests.services.gateway.budget.support import ask, principal, row

LEASE_MS = 30_000
MINUTE = 60_000
OUTBOX_LIMIT = 25
#: More nano-dollars than any request costs, with which the script computes without rounding.
PLENTY = 10**12
#: 1.5 and 2.5 nano-dollars per token, at least 4 completion tokens.
MODEL = PricedModel("m", Decimal("1.5e-9"), Decimal("2.5e-9"), min_completion_tokens=4)
ROWS = {
    one.name: one
    for one in (
        row(
            "small", max_budget_nano=1000, duration_seconds=3600, rpm=4, tpm=120, max_streams=3, total_budget_nano=10**6
        ),
        row("large", max_budget_nano=4000, duration_seconds=3600, rpm=0, tpm=0),
        row("daily", max_budget_nano=2000, duration_seconds=86_400, rpm=6, tpm=300),
    )
}
#: Two service types of one identity, which share a block, and another user on another shard.
PRINCIPALS = (
    principal(ROWS["small"], user=1, jti="jti-1"),
    principal(ROWS["daily"], user=1, jti="jti-2"),
    principal(ROWS["small"], user=2, jti="jti-3"),
)


@dataclass
class Request:
    user: int
    reservation: Reservation = field(repr=False)
    number: int
    ends: int
    state: str = "open"
    known: bool = True  # Redis has the reservation
    cost: int = 0
    settlement: LedgerRow | None = field(default=None, repr=False)


@dataclass
class User:
    """What Redis should hold of a user; None where no state was built."""

    epoch: str | None = None
    tier: str = ""
    period_seconds: int = 0
    period: int = 0
    newest: int = 0
    requests: list[int] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    exception: Excepted | None = None


class Scripts(RuleBasedStateMachine):
    server: ValkeyServer

    @initialize()
    def start(self) -> None:
        self.client = self.server.client()
        self.client.flushall()
        self.executor = ClockedExecutor(self.client, 1_700_000_000_000)
        self.scripts = BudgetScripts(self.executor, LEASE_MS / 1000, OUTBOX_LIMIT)  # type: ignore[arg-type]
        self.runner = asyncio.Runner()
        self.auth = redis.asyncio.Redis.from_url(self.server.url)
        self.ids = itertools.count()
        self.requests: list[Request] = []
        self.users = [User() for _ in PRINCIPALS]
        self.tiers = [who.service_type.name for who in PRINCIPALS]
        self.expected_tiers = list(self.tiers)
        self.exceptions: list[Excepted | None] = [None for _ in PRINCIPALS]
        self.expected_extra = [0 for _ in PRINCIPALS]
        self.blocks = {who.identity: "0" for who in PRINCIPALS}
        self.identity_epochs: dict[str, str | None] = {who.identity: None for who in PRINCIPALS}
        self.revoked: dict[int, set[str]] = {user: set() for user in range(len(PRINCIPALS))}
        self.revoked_in_redis: set[str] = set()
        self.oldest = dict.fromkeys(self.blocks, 0)  # the oldest tokens that are good, by identity
        self.oldest_in_redis = dict(self.oldest)
        self.ledger: dict[str, int] = {}
        self.sums_kept = True
        self.swept = 0
        self.principals = list(PRINCIPALS)
        self.seen: Counter[str] = Counter()
        self.exact = [True for _ in PRINCIPALS]  # nothing was lost, no tier lowered: never over budget

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.run(self.auth.aclose())
            self.runner.close()
            self.client.close()

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    # --- what is true -----------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        return self.executor.now_ms

    def current(self, user: int) -> bool:
        epoch = self.executor.current_epoch
        return self.users[user].epoch == epoch and self.identity_epochs[self.principals[user].identity] == epoch

    def duration(self, user: int) -> int:
        return ROWS[self.users[user].tier].duration_seconds

    def in_period(self, user: int, request: Request, period: int) -> bool:
        return request.reservation.admitted_ms // 1000 // self.duration(user) == period

    def of(self, user: int, *states: str) -> Iterator[Request]:
        return (request for request in self.requests if request.user == user and request.state in states)

    def spent(self, user: int, period: int) -> int:
        return sum(one.cost for one in self.of(user, "settled", "reaped") if self.in_period(user, one, period))

    def reserved(self, user: int, period: int) -> int:
        return sum(
            one.reservation.amount_nano
            for one in self.of(user, "open")
            if one.known and self.in_period(user, one, period)
        )

    def excepted(self, user: int) -> tuple[int, bool]:
        """The money beside the budget, and whether no rate holds."""
        given = self.users[user].exception
        return (given.extra_nano, given.without_rates) if given and self.now < int(given.until * 1000) else (0, False)

    def open(self, user: int) -> list[Request]:
        return [one for one in self.of(user, "open") if one.known]

    def estimated(self, user: int) -> int:
        return sum(one.reservation.ask.estimated_prompt_tokens for one in self.open(user))

    # --- events -----------------------------------------------------------------------------------------------

    users_ = st.integers(0, len(PRINCIPALS) - 1)

    @rule(milliseconds=st.sampled_from((1, 400, 20_000, 29_000, 60_000, 61_000, 3_600_000, 86_400_000)))
    def time_passes(self, milliseconds: int) -> None:
        """Redis drops a window's key when its newest entry is a minute old."""
        self.executor.now_ms = self.now + milliseconds
        for who, state in zip(self.principals, self.users, strict=True):
            keys = layout.of_user(who.user_id)
            if state.tokens and max(state.tokens)[0] + MINUTE <= self.now:
                self.client.delete(keys.tokens_window(who.user_id))
                state.tokens = []
            if state.requests and max(state.requests) + MINUTE <= self.now:
                self.client.delete(keys.requests_window(who.user_id))
                state.requests = []

    @rule(milliseconds=st.sampled_from((300, 3_600_000)))
    def clock_goes_back(self, milliseconds: int) -> None:
        self.executor.now_ms = self.now - milliseconds

    asks = st.tuples(st.integers(0, 200), st.integers(1, 300), st.integers(1, 2))

    @rule(
        user=users_,
        wanted=st.lists(asks, min_size=1, max_size=6),
        apart=st.sampled_from((0, 0, 300, 15_000)),
        room=st.none() | st.integers(0, 800),
        enforced=st.sampled_from((True, True, False)),
    )
    def admit(
        self, user: int, wanted: list[tuple[int, int, int]], apart: int, room: int | None, enforced: bool
    ) -> None:
        for prompt, limit, n in wanted:
            while self.try_to_admit(user, prompt, limit, n, room, enforced=enforced) in ("load", "tier"):
                pass
            self.executor.now_ms = self.now + apart

    @rule(
        user=users_, pauses=st.lists(st.sampled_from((1, 9, 14, 31)), min_size=1, max_size=8), tokens=st.integers(1, 60)
    )
    def chat(self, user: int, pauses: list[int], tokens: int) -> None:
        """What most requests are."""
        for pause in pauses:
            while (result := self.try_to_admit(user, 12, 10, 1)) in ("load", "tier"):
                pass
            if result == "ok":
                request = self.requests[-1]
                self.executor.now_ms = self.now + 500
                request.settlement = request.reservation.row(Charge(tokens, 7, tokens, tokens), "success")
                assert self.send(request.settlement) == f"0 {self.now}"
                request.state, request.cost = "settled", tokens
                self.users[user].tokens.append((self.now, tokens))
            self.executor.now_ms = self.now + pause * 1000

    @rule(user=users_)
    def open_many(self, user: int) -> None:
        """In a new period, so that the budget allows it."""
        self.executor.now_ms = self.now + self.duration_of_tier(user) * 1000
        for _ in range(4):
            while self.try_to_admit(user, 0, 1, 1) in ("load", "tier"):
                pass

    def waiting(self, number: int) -> list[bytes]:
        """The rows of a shard that PostgreSQL may not have."""
        names: list[bytes] = self.client.hkeys(layout.SHARD_KEYS[number].outbox)
        return names

    def duration_of_tier(self, user: int) -> int:
        return ROWS[self.tiers[user]].duration_seconds

    def try_to_admit(
        self, user: int, prompt: int, limit: int, n: int, room: int | None = None, *, enforced: bool = True
    ) -> str:
        """The answer's name, compared with the model's.

        :param room: what the total leaves; more than the least that the request needs.
        """
        who = self.principals[user]
        wanted = ask(
            who, id=f"id{next(self.ids):04d}", model=MODEL, prompt_bound=prompt, estimated_prompt_tokens=prompt // 4,
            limit=limit, n=n, request_id="a|b",
        )  # fmt: skip
        tier = ROWS[self.expected_tiers[user]]
        hoped = Expected(tier.name, tier, self.expected_extra[user], enforced)
        limits_of_it = bounds(wanted, hoped.budget_nano if enforced else PLENTY)
        if room is not None:
            room += limits_of_it.least
        outlook = self.outlook(user, limits_of_it, enforced=enforced)
        answer = self.run(self.scripts.admit(wanted, hoped, limits_of_it, room))
        expected, would = self.decide(user, prompt, limit, n, room), None
        if expected[0] not in ("full", "load", "tier"):
            state = self.users[user]
            since = self.now - MINUTE
            assert (outlook.requests, outlook.tokens, outlook.open_requests) == (
                sum(at > since for at in state.requests),
                self.estimated(user) + sum(tokens for at, tokens in state.tokens if at > since),
                len(self.open(user)),
            )
        if not enforced and expected[0] in ("streams", "rpm", "tpm", "exceeded", "large", "reserved", "ok"):
            would = None if expected[0] == "ok" else expected[0]
            expected = self.grant(prompt, limit, n, room)
        if isinstance(answer, Refusal):
            assert (answer.reason, answer.tier, round(answer.retry_after * 1000)) == expected
            if answer.reason == "load":
                self.rebuild(user)
            elif answer.reason == "tier":
                assert answer.extra_nano == self.excepted(user)[0]
                self.expected_tiers[user], self.expected_extra[user] = answer.tier, answer.extra_nano
        else:
            assert answer.would_refuse == would
            self.exact[user] &= enforced
            self.seen[f"would {would}" if would else "as it is"] += 1
            assert ("ok", answer.grant, answer.amount_nano) == expected
            assert answer.admitted_ms == self.now
            assert self.current(user)
            self.requests.append(Request(user, answer, shard(who.identity), self.now + LEASE_MS))
            if tier.rpm:
                self.users[user].requests.append(self.now)
        of_its_age = expected[0] == "token" and who.jti not in self.revoked_in_redis  # no forecast knows the token's
        if expected[0] not in ("full", "load", "tier") and not of_its_age:
            told = next(((reason, round(wait * 1000)) for reason, wait in outlook.refusals.items()), ("ok", 0))
            assert told == (expected[0], 0 if expected[0] == "ok" else expected[2])
        limits = answer.rate_limits
        self.seen[expected[0]] += 1
        if limits is not None:
            state = self.users[user]
            assert limits.tokens_used == self.estimated(user) + sum(tokens for _, tokens in state.tokens)
            assert limits.tokens_reset_ms == (state.tokens[-1][0] + MINUTE - self.now if state.tokens else 0)
            if tier.rpm:
                assert limits.requests_used == len(state.requests)
                assert limits.requests_reset_ms == (state.requests[-1] + MINUTE - self.now if state.requests else 0)
        return expected[0]

    def outlook(self, user: int, bounds_: Bounds, *, enforced: bool) -> decisions.Outlook:
        """Auth's forecast for the request, by the tier that it knows, and without the totals."""
        who = self.principals[user]
        until = 0.0 if enforced else 2.0**40
        kinds = {
            name: msgspec.structs.replace(one, total_budget_nano=0, enforce=enforced, enforce_until=until)
            for name, one in ROWS.items()
        }
        standing = Standing(self.blocks[who.identity])
        recorded = decisions.Recorded(self.tiers[user], standing, 0, [who.jti], self.exceptions[user])
        client: Any = ClockedClient(self.client)
        found = self.run(
            decisions.outlook(client, who.user_id, kinds, recorded, least=bounds_.least, empty=bounds_.empty)
        )
        assert found is not None
        return found

    def decide(self, user: int, prompt: int, limit: int, n: int, room: int | None) -> tuple[str, Any, int]:
        """What PROTOCOL.md answers a request at this moment; also lets pass what a decision lets pass."""
        who, state = self.principals[user], self.users[user]
        if len(self.waiting(shard(who.identity))) >= OUTBOX_LIMIT:
            return ("full", "", 0)
        if not self.current(user):
            return ("load", "", 0)
        tier = ROWS[self.expected_tiers[user]]
        extra, without_rates = self.excepted(user)
        if (state.tier, extra) != (tier.name, self.expected_extra[user]):
            return ("tier", state.tier, 0)
        if state.period_seconds != tier.duration_seconds:
            return ("load", "", 0)
        period = self.now // 1000 // tier.duration_seconds
        if period != state.period:
            if period <= state.newest:
                return ("load", "", 0)
            state.period = state.newest = period
        if tier.rpm:
            state.requests = sorted(at for at in state.requests if at > self.now - MINUTE)
        state.tokens = sorted((at, tokens) for at, tokens in state.tokens if at > self.now - MINUTE)
        used = sum(tokens for _, tokens in state.tokens) + self.estimated(user)
        if self.blocks[who.identity] != "0":
            return (self.blocks[who.identity], "", 0)
        if self.token_refused(who):
            return ("token", "", 0)
        if not without_rates and (refusal := self.refused_by_rates(user, tier, used)):
            return refusal
        left = tier.max_budget_nano + extra - self.spent(user, period)
        free = left - self.reserved(user, period)
        least = min(limit, MODEL.min_completion_tokens)
        if ceil(Decimal("2.5") * least) > left:
            return ("exceeded", "", (period + 1) * tier.duration_seconds * 1000 - self.now)
        if self.cost(prompt, least, n) > left:
            return ("large", "", 0)
        if self.cost(prompt, least, n) > free:
            return ("reserved", "", 1000)
        return self.grant(prompt, limit, n, free if room is None else min(free, room))

    def cost(self, prompt: int, grant: int, n: int) -> int:
        return ceil(Decimal("1.5") * prompt + Decimal("2.5") * grant * n)

    def grant(self, prompt: int, limit: int, n: int, free: int | None) -> tuple[str, Any, int]:
        """What is granted of so many nano-dollars; None: as many as it takes."""
        grant = limit
        if free is not None:
            least = min(limit, MODEL.min_completion_tokens)
            grant = max(least, min(limit, floor((free - Decimal("1.5") * prompt) / (Decimal("2.5") * n))))
        return ("ok", grant, self.cost(prompt, grant, n))

    def refused_by_rates(self, user: int, tier: ServiceType, used: int) -> tuple[str, Any, int] | None:
        state = self.users[user]
        if tier.max_streams and len(self.open(user)) >= tier.max_streams:
            return ("streams", "", 1000)
        if tier.rpm and len(state.requests) >= tier.rpm:
            return ("rpm", "", state.requests[-tier.rpm] + MINUTE - self.now)
        if tier.tpm and used >= tier.tpm:
            wait = 1000
            for at, tokens in state.tokens:
                used -= tokens
                if used < tier.tpm:
                    wait = at + MINUTE - self.now
                    break
            return ("tpm", "", wait)
        return None

    @precondition(lambda self: any(one.state in ("open", "reaped") for one in self.requests))
    @rule(data=st.data(), cost=st.integers(0, 1500), tokens=st.integers(0, 100), overrun=st.booleans())
    def settle(self, data: st.DataObject, cost: int, tokens: int, overrun: bool) -> None:
        request = data.draw(st.sampled_from([one for one in self.requests if one.state in ("open", "reaped")]))
        cost = cost if overrun else min(cost, request.reservation.amount_nano)
        charged = Charge(cost, 7, tokens, tokens)
        settlement = request.reservation.row(charged, "success")
        reply = self.send(settlement)
        assert self.send(settlement) == reply, "a second settlement changes nothing, and says the same"
        request.settlement = settlement
        if request.state == "open":
            assert reply == f"0 {self.now}"
            if not request.known:
                self.settled_unknown(request)
        elif cost < request.cost:
            assert reply == f"1 {self.now} {request.reservation.admitted_ms}"
        else:
            assert reply == "-"
            request.state = "settled"
            return
        request.state, request.cost = "settled", cost
        if tokens:
            self.users[request.user].tokens.append((self.now, tokens))

    def settled_unknown(self, request: Request) -> None:
        """Only the ledger knows the spend, if it was settled before, in the period of its admission."""
        state, period = self.users[request.user], self.period_of(request)
        if period == state.period:
            state.epoch = None
        self.note_period(request)

    def period_of(self, request: Request) -> int | None:
        """The period of its user's tier in which it was admitted; None where Redis has no state of the user."""
        seconds = self.users[request.user].period_seconds
        return request.reservation.admitted_ms // 1000 // seconds if seconds else None

    def note_period(self, request: Request) -> None:
        state = self.users[request.user]
        state.newest = max(state.newest, self.period_of(request) or 0)

    def send(self, settlement: LedgerRow) -> str:
        reply: bytes = self.run(self.executor.run(*self.scripts.settle_call(settlement)))
        return reply.decode()

    @precondition(lambda self: any(one.state == "open" for one in self.requests))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """A request that never went out leaves nothing behind, and can't be admitted afterwards."""
        request = data.draw(st.sampled_from([one for one in self.requests if one.state == "open"]))
        row = request.reservation.row(Charge(0, 0, 0, 0), "abort")
        assert self.send(msgspec.structs.replace(row, total="", admitted=False)) == "-"
        request.state = "withdrawn"
        tier = ROWS[self.expected_tiers[request.user]]
        late = self.run(
            self.scripts.admit(
                request.reservation.ask,
                Expected(tier.name, tier, 0, enforced=True),
                bounds(request.reservation.ask, 10**6),
            )
        )
        assert isinstance(late, Refusal)

    @precondition(lambda self: any(one.state in ("open", "reaped") for one in self.requests))
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        some = [one for one in self.requests if one.state in ("open", "reaped")]
        first = data.draw(st.sampled_from(some))
        batch = [one for one in some if one.number == first.number]
        states = self.run(self.scripts.renew(first.number, [one.reservation for one in batch]))
        for request, state in zip(batch, states, strict=True):
            who = request.reservation.ask.principal
            block = self.blocks[who.identity] if self.identity_known(who.identity) else "0"
            if request.state == "reaped":
                assert state == "reaped"
                continue
            if not request.known:
                self.note_period(request)
            request.known, request.ends = True, self.now + LEASE_MS
            assert state == (block if block != "0" else "token" if self.token_refused(who) else "ok")

    def token_refused(self, who: Principal) -> bool:
        return who.jti in self.revoked_in_redis or who.issued_at < self.oldest_in_redis[who.identity]

    def identity_known(self, identity: str) -> bool:
        return self.client.exists(layout.identity_key(identity)) == 1

    @rule()
    def reap(self) -> None:
        self.client.delete(*(layout.SHARD_KEYS[one].claim for one in range(64)))
        for number in {shard(who.identity) for who in PRINCIPALS}:
            found = self.run(self.scripts.sweep(number, "me", 60, 5, "0"))
            assert found is not None
            self.swept = max(self.swept, self.now)
            over = {one.reservation.id: one for one in self.requests
                    if one.number == number and one.known and one.state == "open" and one.ends <= self.now}  # fmt: skip
            assert {one for one, _ in found.expired} == set(over)
            assert found.waiting == len(self.waiting(number))
            also = [Expired(one.reservation.id, one.reservation.ask.principal.user_id) for one in self.requests
                    if one.number == number]  # fmt: skip
            rows = self.run(self.scripts.reap(number, also))
            assert {one.id: one.cost_nano for one in rows} == {
                name: one.reservation.amount_nano for name, one in over.items()
            }
            for name, one in over.items():
                one.state, one.cost = "reaped", one.reservation.amount_nano
                entry = next(made for made in rows if made.id == name)
                assert (entry.outcome, entry.prompt_tokens) == ("expired", one.reservation.ask.prompt_bound)
                assert entry.completion_tokens == one.reservation.grant * one.reservation.ask.n
                assert (entry.admitted_ms, entry.details.request_id) == (one.reservation.admitted_ms, "a|b")
            outbox = self.client.hkeys(layout.SHARD_KEYS[number].outbox)
            assert {name.encode() for name in over} <= set(outbox)
            again = self.run(self.scripts.sweep(number, "other", 60, 5, "0"))
            assert again is None, "the shard was claimed"

    @rule(acknowledge=st.booleans())
    def flush(self, acknowledge: bool) -> None:
        """Rows of the outbox reach the ledger, and are acknowledged, or not yet."""
        for number in {shard(who.identity) for who in PRINCIPALS}:
            entries = self.client.hgetall(layout.SHARD_KEYS[number].outbox)
            rows = [LedgerRow.parse(name.decode(), entry.decode()) for name, entry in entries.items()]
            for one in rows:
                known = self.ledger.get(one.id)
                if known is None or (one.lowers and one.cost_nano < known):
                    self.ledger[one.id] = one.cost_nano
            if acknowledge and rows:
                self.run(self.scripts.acknowledge(number, rows))
                for one in rows:
                    if one.outcome == "expired":
                        user = next(at for at, who in enumerate(self.principals) if who.user_id == one.user_id)
                        self.users[user].epoch = None
                assert not self.client.exists(layout.SHARD_KEYS[number].outbox)

    @rule(user=users_, tiers=st.lists(st.sampled_from(sorted(ROWS)), min_size=1, max_size=3))
    def change_tiers(self, user: int, tiers: list[str]) -> None:
        for tier in tiers:
            self.change_tier(user, tier)
            while self.try_to_admit(user, 1, 3, 1) in ("load", "tier"):
                pass

    @rule(user=users_, tier=st.sampled_from(sorted(ROWS)))
    def change_tier(self, user: int, tier: str) -> None:
        self.tiers[user] = tier
        self.set_user(user)

    @rule(
        user=users_,
        extra=st.sampled_from((0, 500, 3000)),
        without_rates=st.booleans(),
        lasts=st.sampled_from((300, 60_000, 7_200_000)),
    )
    def make_an_exception(self, user: int, extra: int, without_rates: bool, lasts: int) -> None:
        """Its user asks at once, and when it may have ended."""
        self.exceptions[user] = Excepted((self.now + lasts) / 1000, extra, without_rates)
        self.set_user(user)
        for _ in range(6):
            while self.try_to_admit(user, 20, 30, 1) in ("load", "tier"):
                pass
        self.executor.now_ms = self.now + 400
        while self.try_to_admit(user, 20, 30, 1) in ("load", "tier"):
            pass

    @rule(user=users_)
    def end_the_exception(self, user: int) -> None:
        self.exceptions[user] = None
        self.set_user(user)

    def set_user(self, user: int) -> None:
        tier, given = self.tiers[user], self.exceptions[user]
        self.run(decisions.set_user(self.auth, self.principals[user].user_id, tier, given))
        if self.users[user].epoch is not None:
            self.users[user].tier, self.users[user].exception = tier, given
        self.exact[user] = False

    def change_block(self, user: int, block: str) -> None:
        identity = self.principals[user].identity
        self.blocks[identity] = block
        self.tell_redis(identity)

    def tell_redis(self, identity: str) -> None:
        oldest = self.oldest_in_redis[identity] = self.oldest[identity]
        self.run(decisions.set_standing(self.auth, identity, Standing(self.blocks[identity]), Oldest(oldest)))

    @rule(user=users_, block=st.sampled_from(("blocked", "revoked")), data=st.data())
    def block_for_a_while(self, user: int, block: str, data: st.DataObject) -> None:
        self.change_block(user, block)
        self.try_to_admit(user, 1, 1, 1)
        if any(one.state in ("open", "reaped") for one in self.requests):
            self.renew(data)
        self.every_state_is_as_the_model_has_it()
        if data.draw(st.integers(0, 9)):
            self.change_block(user, "0")

    @rule(user=users_, data=st.data())
    def revoke(self, user: int, data: st.DataObject) -> None:
        """The token in hand is refused from then on, its open requests end, and the user gets another one."""
        who = self.principals[user]
        self.revoked[user].add(who.jti)
        self.revoked_in_redis.add(who.jti)
        self.run(decisions.revoke_token(self.auth, who.identity, who.jti, who.expires_at + 10**6))
        self.try_to_admit(user, 1, 1, 1)
        if any(one.state in ("open", "reaped") for one in self.requests):
            self.renew(data)
        self.every_state_is_as_the_model_has_it()
        if data.draw(st.integers(0, 9)):
            self.principals[user] = dataclasses.replace(who, jti=f"jti{next(self.ids)}")

    @rule(user=users_, data=st.data())
    def refuse_older(self, user: int, data: st.DataObject) -> None:
        """The tokens of an identity are refused in all its service types, and it gets another one for this."""
        who = self.principals[user]
        self.oldest[who.identity] += 1
        self.tell_redis(who.identity)
        self.try_to_admit(user, 1, 1, 1)
        if any(one.state in ("open", "reaped") for one in self.requests):
            self.renew(data)
        self.every_state_is_as_the_model_has_it()
        if data.draw(st.integers(0, 9)):
            self.principals[user] = dataclasses.replace(who, issued_at=self.oldest[who.identity])

    @rule(user=users_, data=st.data(), seconds=st.sampled_from((29, 30)))
    def a_gateway_dies(self, user: int, data: st.DataObject, seconds: int) -> None:
        """Its leases end after 30 s."""
        self.try_to_admit(user, data.draw(st.integers(0, 200)), 10, 1)
        if any(one.state == "open" for one in self.requests):
            self.renew(data)
        self.executor.now_ms = self.now + seconds * 1000
        self.reap()

    @rule()
    def restart_with_data(self) -> None:
        self.executor.current_epoch += "k"

    @rule()
    def restart_empty(self) -> None:
        """What gateways remember comes back: rows not written yet at once, reservations with their next renewal."""
        epoch, now = self.executor.current_epoch + "e", self.now
        outbox = {
            name.decode()
            for number in {shard(who.identity) for who in PRINCIPALS}
            for name in self.client.hkeys(layout.SHARD_KEYS[number].outbox)
        }
        self.client.flushall()
        self.executor.current_epoch, self.executor.now_ms = epoch, now
        self.sums_kept = False
        self.revoked_in_redis.clear()
        self.oldest_in_redis = dict.fromkeys(self.oldest, 0)
        self.users = [User() for _ in PRINCIPALS]
        self.exact = [False for _ in PRINCIPALS]
        self.identity_epochs = dict.fromkeys(self.identity_epochs)
        for one in self.requests:
            if one.state == "open":
                one.known = False
            elif one.state == "reaped":
                one.state = "settled"
                self.ledger[one.reservation.id] = one.cost
            elif one.state == "settled" and one.reservation.id in outbox:
                if (
                    one.settlement is not None
                    and one.settlement.cost_nano == one.cost
                    and one.reservation.id not in self.ledger
                ):
                    self.send(one.settlement)
                    tokens = one.settlement.rate_tokens
                    if tokens:
                        self.users[one.user].tokens.append((self.now, tokens))
                else:
                    self.ledger[one.reservation.id] = one.cost

    # --- rebuilding -------------------------------------------------------------------------------------------

    def load(self, user: int, snapshot: Any) -> bool:
        """What ``Rebuilder`` does, with the ledger of this test."""
        who, tier = self.principals[user], ROWS[self.tiers[user]]
        seconds = tier.duration_seconds
        period = snapshot.now_ms // 1000 // seconds
        spent = 0
        for one in self.requests:
            in_window = one.reservation.admitted_ms // 1000 // seconds == period
            if one.user == user and in_window and one.reservation.id in self.ledger:
                spent += self.ledger[one.reservation.id]
        for name, (cost, admitted) in snapshot.rows.items():
            if admitted // 1000 // seconds == period:
                spent += cost - self.ledger.get(name, 0)
        written = [one for one in self.requests if one.user == user and one.reservation.id in self.ledger]
        newest = max([period, *(one.reservation.admitted_ms // 1000 // seconds for one in written),
                      *(admitted // 1000 // seconds for _, admitted in snapshot.rows.values())])  # fmt: skip
        revoked = dict.fromkeys(sorted(self.revoked[user]), 10**6)
        given = self.exceptions[user]
        build = UserBuild(
            tier.name, seconds, period, spent, newest, Standing(self.blocks[who.identity]), revoked,
            given.pack() if given else "", self.oldest[who.identity],
        )  # fmt: skip
        loaded: bool = self.run(self.scripts.load(who.user_id, snapshot, build))
        if loaded:
            newest = max([newest, *(one.reservation.admitted_ms // 1000 // seconds for one in self.open(user))])
            self.note_load(user, tier.name, seconds, period, newest)
        return loaded

    def note_load(self, user: int, tier: str, seconds: int, period: int, newest: int) -> None:
        state, who = self.users[user], self.principals[user]
        if newest > period:
            state.requests, state.tokens = [], []
        state.epoch = self.identity_epochs[who.identity] = self.executor.current_epoch
        state.tier, state.period, state.newest, state.period_seconds = tier, period, newest, seconds
        state.exception = self.exceptions[user]
        self.revoked_in_redis |= self.revoked[user]
        self.oldest_in_redis[who.identity] = self.oldest[who.identity]

    def rebuild(self, user: int) -> None:
        assert self.load(user, self.run(self.scripts.snapshot(self.principals[user].user_id)))

    @rule(
        user=users_,
        data=st.data(),
        event=st.sampled_from(("settle", "flush", "tier", "block", "renew", "reap", "other period")),
    )
    def rebuild_while_something_happens(self, user: int, data: st.DataObject, event: str) -> None:
        """A rebuild whose snapshot is out of date must start again."""
        if event == "reap":
            self.executor.now_ms = self.now + LEASE_MS
        snapshot = self.run(self.scripts.snapshot(self.principals[user].user_id))
        stale = True
        if event == "settle":
            mine = [one for one in self.requests if one.user == user and one.state == "open"]
            stale = bool(mine)
            if mine:
                request = mine[0]
                request.settlement = request.reservation.row(Charge(5, 1, 1, 0), "success")
                self.send(request.settlement)
                request.state, request.cost = "settled", 5
                if not request.known:
                    self.settled_unknown(request)
        elif event == "flush":
            stale = bool(snapshot.rows)
            self.flush(acknowledge=True)
        elif event == "tier":
            self.change_tier(user, data.draw(st.sampled_from(sorted(ROWS))))
        elif event == "block":
            self.change_block(user, "0")
        elif event == "reap":
            stale = any(one.ends <= self.now for one in self.open(user))
            self.reap()
        elif event == "renew":
            stale = False
            if any(one.state in ("open", "reaped") for one in self.requests):
                self.renew(data)
        else:
            self.executor.now_ms = self.now + 86_400_000
        assert self.load(user, snapshot) is not stale

    # --- what must always hold --------------------------------------------------------------------------------

    @invariant()
    def every_state_is_as_the_model_has_it(self) -> None:
        if not hasattr(self, "client"):
            return
        for user, who in enumerate(self.principals):
            words = self.run(self.scripts.state(who))
            if not self.current(user):
                assert words == [b"load"]
                continue
            if self.blocks[who.identity] != "0":
                assert words == [self.blocks[who.identity].encode()]
                continue
            if self.token_refused(who):
                assert words == [b"token"]
                continue
            state = self.users[user]
            period = self.now // 1000 // state.period_seconds
            if period != state.period and period <= state.newest:
                assert words == [b"load"]
                continue
            seconds = state.period_seconds
            spent = sum(
                one.cost for one in self.of(user, "settled", "reaped")
                if one.reservation.admitted_ms // 1000 // seconds == period
            )  # fmt: skip
            reserved = sum(
                one.reservation.amount_nano for one in self.open(user)
                if one.reservation.admitted_ms // 1000 // seconds == period
            )  # fmt: skip
            since = self.now - MINUTE
            requests = [at for at in state.requests if at > since]
            tokens = sum(amount for at, amount in state.tokens if at > since) + self.estimated(user)
            assert [word.decode() for word in words[:7]] == [
                "ok",
                state.tier,
                str(self.excepted(user)[0]),
                str(seconds),
                str(period),
                str(spent),
                str(reserved),
            ]
            assert (int(words[7]), int(words[9])) == (len(requests), tokens)
            if self.exact[user] and not any(one.cost > one.reservation.amount_nano for one in self.of(user, "settled")):
                assert spent + reserved <= ROWS[state.tier].max_budget_nano

    @invariant()
    def the_sums_of_a_shard_are_those_of_its_users(self) -> None:
        """``total_budget``: maintained as long as Redis keeps its data, and until a day after the period."""
        if not hasattr(self, "client") or not self.sums_kept:
            return
        for who_number in {shard(who.identity) for who in PRINCIPALS}:
            sums = Counter[str]()
            for one in self.requests:
                of_type = one.reservation.ask.principal.service_type
                total = f"{of_type.name}:{of_type.duration_seconds}"
                period = one.reservation.admitted_ms // 1000 // of_type.duration_seconds
                if one.number == who_number and one.reservation.total and self.keeps_sums(total, period):
                    if one.state == "open" and one.known:
                        sums[f"r|{total}|{period}"] += one.reservation.amount_nano
                    elif one.state in ("settled", "reaped"):
                        sums[f"s|{total}|{period}"] += one.cost
            kept = Counter[str]()
            for name, value in self.client.hgetall(layout.SHARD_KEYS[who_number].totals).items():
                _, total, period = name.decode().split("|")
                if self.keeps_sums(total, int(period)):
                    kept[name.decode()] = int(value)
            assert +kept == +sums

    def keeps_sums(self, total: str, period: int) -> bool:
        """Whether no sweep has forgotten the sums of a period."""
        return period >= (self.swept // 1000 - layout.REAPED) // int(total.rpartition(":")[2])


def test_the_scripts_do_what_a_plain_model_does(valkey_server: ValkeyServer) -> None:
    full = bool(os.environ.get("MLPA_TEST_FULL"))

    class OnThisServer(Scripts):
        server = valkey_server

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        OnThisServer,
        settings=settings(
            max_examples=600 if full else 30,
            stateful_step_count=60,
            deadline=None,
            derandomize=not full,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
        ),
    )
