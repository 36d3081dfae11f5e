"""The values of budgets: requests, reservations, settlements. Money is whole nano-dollars, times are Unix time."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from shared.domain.outcome import Outcome
from shared.errors import ServiceError
from shared.state.packed import Details, LedgerRow, Reserved, period_of
from shared.state.refusals import Word

if TYPE_CHECKING:
    from services.gateway.budget.charging import Charge
    from services.gateway.catalogue.prices import PricedModel
    from services.gateway.tokens.models import Principal


@dataclass(frozen=True, slots=True)
class Timings:
    """The intervals of the background work, in seconds. Tests shorten them."""

    lease: float = 30
    renew: float = 5  # half of the 10 s within which a block ends a stream (services/PROTOCOL.md, section 4)
    flush: float = 0.2
    sweep: float = 2
    orphan: float = 5  # an outbox entry older than this was left by a dead gateway, or waits for PostgreSQL
    totals: float = 0.3  # twice this, since one gateway reads for all, is well within the second that is promised
    drain: float = 10


#: Bits of the lower 80 of a UUIDv7 that are fixed, and the others.
_VERSION_AND_VARIANT = 0x7000_8000_0000_0000_0000
_NOT_OURS = 0x0FFF_3FFF_FFFF_FFFF_FFFF


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7) as hex: later ones sort later, so that the ledger's index grows at its end."""
    random = int.from_bytes(os.urandom(10)) & _NOT_OURS | _VERSION_AND_VARIANT
    return f"{time.time_ns() // 1_000_000:012x}{random:020x}"


class Ask(msgspec.Struct, frozen=True):
    """A request that wants to be admitted.

    ``id`` is the gateway's (``new_id``); ``request_id`` is the client's, and never a key.
    ``prompt_bound`` is a bound on the prompt's tokens, ``estimated_prompt_tokens`` the guess that TPM counts.
    ``limit`` is the completion limit asked for (or the default), per choice; ``n`` the number of choices.
    """

    id: str
    request_id: str
    principal: Principal
    model: PricedModel
    purpose: str
    prompt_bound: int
    estimated_prompt_tokens: int
    limit: int
    n: int = 1

    def details(self, period_seconds: int) -> Details:
        principal = self.principal
        return Details(self.request_id, principal.service_type.name, self.model.name, self.purpose, period_seconds)


class RateLimits(msgspec.Struct, frozen=True):
    """State of a user's RPM and TPM after a decision. A limit of 0 means none, and shows no header."""

    requests_limit: int
    requests_used: int
    requests_reset_ms: int
    tokens_limit: int
    tokens_used: int
    tokens_reset_ms: int

    @property
    def requests_remaining(self) -> int:
        return max(0, self.requests_limit - self.requests_used)

    @property
    def tokens_remaining(self) -> int:
        return max(0, self.tokens_limit - self.tokens_used)

    def headers(self) -> dict[str, str]:
        """OpenAI's ``x-ratelimit-*`` headers; ``reset`` is the time until nothing counts any more."""
        headers = {}
        if self.requests_limit:
            headers["x-ratelimit-limit-requests"] = str(self.requests_limit)
            headers["x-ratelimit-remaining-requests"] = str(self.requests_remaining)
            headers["x-ratelimit-reset-requests"] = duration(self.requests_reset_ms)
        if self.tokens_limit:
            headers["x-ratelimit-limit-tokens"] = str(self.tokens_limit)
            headers["x-ratelimit-remaining-tokens"] = str(self.tokens_remaining)
            headers["x-ratelimit-reset-tokens"] = duration(self.tokens_reset_ms)
        return headers


def duration(milliseconds: int) -> str:
    """A duration as OpenAI writes it: ``0s``, ``250ms``, ``12.5s``, ``6m0s``."""
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds


class Reservation(msgspec.Struct, frozen=True, eq=False):
    """An admitted request. ``grant`` is the completion limit per choice that goes upstream.

    ``revoked`` gets the error that ends the request, once a renewal finds its user blocked or its token revoked.
    """

    ask: Ask
    grant: int
    amount_nano: int
    period_seconds: int
    admitted_ms: int
    rate_limits: RateLimits
    total: str
    #: The reason that would have refused it, had the budget and the rates of its row been enforced.
    would_refuse: Word | None = None
    revoked: asyncio.Future[ServiceError] = msgspec.field(default_factory=asyncio.Future)

    @property
    def id(self) -> str:
        return self.ask.id

    @property
    def period_index(self) -> int:
        return period_of(self.admitted_ms, self.period_seconds)

    def packed(self) -> str:
        """The reservation as the user's hash holds it (``admit.lua`` writes the same)."""
        ask = self.ask
        return Reserved(
            self.amount_nano,
            self.admitted_ms,
            ask.estimated_prompt_tokens,
            ask.prompt_bound,
            self.grant * ask.n,
            self.total,
            ask.details(self.period_seconds),
        ).pack()

    def row(self, charge: Charge, outcome: Outcome) -> LedgerRow:
        """The request's ledger row."""
        return LedgerRow(
            self.id,
            self.ask.principal.user_id,
            charge.cost_nano,
            self.admitted_ms,
            charge.prompt_tokens,
            charge.completion_tokens,
            outcome,
            self.ask.details(self.period_seconds),
            reserved_nano=self.amount_nano,
            rate_tokens=charge.rate_tokens,
            total=self.total,
        )

    @property
    def lowered(self) -> bool:
        """Whether the budget could pay for less than was asked: ``x-mlpa-max-completion-tokens``."""
        return self.grant < self.ask.limit


class Usage(msgspec.Struct, frozen=True):
    """A request's tokens as LiteLLM counts them: cache writes in the prompt's, reasoning in the completion's."""

    prompt_tokens: int
    completion_tokens: int
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


class Delivery(msgspec.Struct, frozen=True):
    """The end of a request, as its charge needs it.

    ``sent``: any byte of the request went out. ``refused``: LiteLLM answered an error before any data.
    ``response_cost``: what LiteLLM says that it cost, in USD. ``relayed_bytes``: UTF-8 bytes of content, reasoning
    and tool arguments that were relayed.
    """

    outcome: Outcome
    sent: bool
    refused: bool = False
    usage: Usage | None = None
    response_cost: Decimal | None = None
    relayed_bytes: int = 0
    stream: bool = True


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A user's budget of the current period, and its use."""

    max_budget_nano: int
    spent_nano: int
    reserved_nano: int
    resets_at: float
    rate_limits: RateLimits

    @property
    def remaining_nano(self) -> int:
        return max(0, self.max_budget_nano - self.spent_nano - self.reserved_nano)
