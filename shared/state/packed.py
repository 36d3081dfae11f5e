"""Redis values that have several parts: an open reservation, a ledger row, the field of a sum.

A reservation in the user's hash:  ``amount|admitted ms|estimated|prompt bound|granted tokens|total|details``
A row in the outbox:               ``lowers|cost|settled ms|user id|admitted ms|prompt|completion|outcome|details``
``details`` is JSON: request id, service type, model, purpose, seconds of the period. It comes last, so that nothing in
it can be taken for a separator. The scripts read and write these formats in the chunks ``reservation`` and ``totals``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from shared.domain.service_types import ServiceType

_json = msgspec.json.Encoder()


class Details(msgspec.Struct, frozen=True, array_like=True):
    """The part of a ledger row that is known at admission. ``request_id`` is the client's, and never a key."""

    request_id: str
    service_type: str
    model: str
    purpose: str
    period_seconds: int

    def pack(self) -> str:
        return _json.encode(self).decode()


_details = msgspec.json.Decoder(Details)


class Reserved(NamedTuple):
    """An open reservation. ``granted`` counts the tokens of all choices."""

    amount_nano: int
    admitted_ms: int
    estimated_tokens: int
    prompt_bound: int
    granted: int
    total: str
    details: Details

    def pack(self) -> str:
        return "|".join((*map(str, self[:-1]), self.details.pack()))


class LedgerRow(msgspec.Struct, frozen=True):
    """A request's row on its way to the ledger: to Redis with its settlement, from there to PostgreSQL.

    ``settled_ms`` is 0 until Redis has settled it. ``lowers``: it corrects, downwards, what the reaper charged.
    ``outcome`` is an ``Outcome``, or a word of a later release. Only the process that settles knows what follows
    ``settled_ms``: the amount reserved, the tokens that TPM counts, the name of the total, and whether it was admitted
    (False: it never went out, if admitted at all).
    """

    id: str
    user_id: str
    cost_nano: int
    admitted_ms: int
    prompt_tokens: int
    completion_tokens: int
    outcome: str
    details: Details
    lowers: bool = False
    settled_ms: int = 0
    reserved_nano: int = 0
    rate_tokens: int = 0
    total: str = ""
    admitted: bool = True

    @classmethod
    def parse(cls, row_id: str, entry: str) -> LedgerRow:
        """A row from its entry in the outbox."""
        lowers, cost, settled, user_id, admitted, prompt, completion, outcome, details = entry.split("|", 8)
        return cls(
            id=row_id,
            user_id=user_id,
            cost_nano=int(cost),
            admitted_ms=int(admitted),
            prompt_tokens=int(prompt),
            completion_tokens=int(completion),
            outcome=outcome,
            details=_details.decode(details),
            lowers=lowers == "1",
            settled_ms=int(settled),
        )

    @property
    def start(self) -> str:
        """The beginning of its entry, by which an acknowledgement recognises it."""
        return f"{int(self.lowers)}|{self.cost_nano}|"

    @property
    def end(self) -> str:
        """The end of its entry: what settling adds to ``lowers``, cost, time and user."""
        return f"{self.admitted_ms}|{self.prompt_tokens}|{self.completion_tokens}|{self.outcome}|{self.details.pack()}"


def parse_outbox(fields: Sequence[bytes]) -> list[LedgerRow]:
    """The rows of ``id, entry, id, entry...``."""
    pairs = zip(fields[::2], fields[1::2], strict=True)
    return [LedgerRow.parse(name.decode(), entry.decode()) for name, entry in pairs]


class Excepted(NamedTuple):
    """What a user may beside its tier until a moment: more money in each period, no rates."""

    until: float
    extra_nano: int
    without_rates: bool

    def pack(self) -> str:
        """``ends ms|nano-dollars|0 (no rate holds) or 1``."""
        return f"{int(self.until * 1000)}|{self.extra_nano}|{int(not self.without_rates)}"

    def holds(self, now: float) -> bool:
        return now < self.until


class Unwritten(NamedTuple):
    """A settled request that may not be in the ledger yet."""

    cost_nano: int
    admitted_ms: int

    @classmethod
    def parse(cls, text: str) -> Unwritten:
        cost, _, admitted = text.partition("|")
        return cls(int(cost), int(admitted))


def total_name(service_type: ServiceType) -> str:
    """The name of a service type's sums, ``type:seconds``; empty when it has no total budget."""
    return f"{service_type.name}:{service_type.duration_seconds}" if service_type.total_budget_nano else ""


def sum_field(kind: str, total: str, period: int) -> str:
    """The field of a sum in a shard's totals.

    :param kind: ``SUM_SPENT`` or ``SUM_RESERVED``.
    """
    return f"{kind}{total}|{period}"


def period_of(ms: int, seconds: int) -> int:
    """The number of the period of ``seconds`` that contains a time."""
    return ms // 1000 // seconds
