"""Ledger rows and reservations in the form that they have in Redis.

A reservation in the user's hash:  ``amount|admitted ms|estimated|prompt bound|granted tokens|total|details``
A row in the outbox:               ``lowers|cost|settled ms|user id|admitted ms|prompt|completion|outcome|details``
``details`` is JSON: request id, service type, model, purpose, seconds of the period. It comes last, so that nothing in
it can be taken for a separator.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from services.gateway.budget.charging import Charge
from services.gateway.budget.models import Ask, Reservation
from shared.domain.service_types import ServiceType

_json = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Row:
    """A ledger row on its way. ``lowers``: it corrects, downwards, what the reaper charged."""

    id: str
    user_id: str
    lowers: bool
    cost_nano: int
    settled_ms: int
    admitted_ms: int
    prompt_tokens: int
    completion_tokens: int
    outcome: str
    request_id: str
    service_type: str
    model: str
    purpose: str
    period_seconds: int

    @property
    def start(self) -> str:
        """The beginning of the entry in the outbox, by which an acknowledgement knows it."""
        return f"{int(self.lowers)}|{self.cost_nano}|"


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a request costs, on its way to Redis. ``admitted`` False: it never went out, if admitted at all.

    ``amount_nano`` is what was reserved, and what the reaper charged should it have come first.
    """

    id: str
    user_id: str
    amount_nano: int
    cost_nano: int
    rate_tokens: int
    admitted: bool
    admitted_ms: int
    total: str
    row_end: str

    def row(self, lowers: bool, settled_ms: int) -> Row:
        """The ledger row of it, once Redis has told when it was settled."""
        entry = f"{int(lowers)}|{self.cost_nano}|{settled_ms}|{self.user_id}|{self.row_end}"
        return parse_row(self.id, entry)


def settlement_of(reservation: Reservation, charge: Charge, outcome: str, *, admitted: bool = True) -> Settlement:
    end = (
        f"{reservation.admitted_ms}|{charge.prompt_tokens}|{charge.completion_tokens}|{outcome}|"
        f"{details(reservation.ask, reservation.period_seconds)}"
    )
    return Settlement(
        reservation.id,
        reservation.ask.principal.user_id,
        reservation.amount_nano,
        charge.cost_nano,
        charge.rate_tokens,
        admitted,
        reservation.admitted_ms,
        reservation.total,
        end,
    )


def details(ask: Ask, period_seconds: int) -> str:
    """The part of a ledger row that is known at admission."""
    principal = ask.principal
    row = (ask.request_id, principal.service_type.name, ask.model.name, ask.purpose, period_seconds)
    return _json.encode(row).decode()


def parse_row(row_id: str, entry: str) -> Row:
    """A row from its entry in the outbox."""
    lowers, cost, settled, user_id, admitted, prompt, completion, outcome, rest = entry.split("|", 8)
    request_id, service_type, model, purpose, seconds = msgspec.json.decode(rest)
    return Row(
        id=row_id,
        user_id=user_id,
        lowers=lowers == "1",
        cost_nano=int(cost),
        settled_ms=int(settled),
        admitted_ms=int(admitted),
        prompt_tokens=int(prompt),
        completion_tokens=int(completion),
        outcome=outcome,
        request_id=request_id,
        service_type=service_type,
        model=model,
        purpose=purpose,
        period_seconds=seconds,
    )


def pack_reservation(reservation: Reservation) -> str:
    """A reservation as the user's hash holds it (``admit.lua`` writes the same)."""
    ask = reservation.ask
    return "|".join(
        (
            str(reservation.amount_nano),
            str(reservation.admitted_ms),
            str(ask.estimated_prompt_tokens),
            str(ask.prompt_bound),
            str(reservation.grant * ask.n),
            reservation.total,
            details(ask, reservation.period_seconds),
        )
    )


def total_field(service_type: ServiceType) -> str:
    """Under which the shard sums of a service type stand; empty when it has no total budget."""
    return f"{service_type.name}:{service_type.duration_seconds}" if service_type.total_budget_nano else ""
