"""The total budget of a service type, which all its users share: sums that each shard keeps, added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.domain.service_types import ServiceType
from shared.state.refusals import Word

_WIDTH = 3  # period, spent, reserved


@dataclass(frozen=True, slots=True)
class Total:
    """The amounts that all users of a service type spent and reserved in a period, in nano-dollars."""

    period_index: int
    spent_nano: int
    reserved_nano: int

    def room(self, row: ServiceType) -> int:
        """The rest of a total budget."""
        return row.total_budget_nano - self.spent_nano - self.reserved_nano

    def refusal(self, row: ServiceType, least: int, empty: int, now: float) -> tuple[Word, float] | None:
        """Why a request is refused that has to reserve ``least`` nano-dollars, ``empty`` without its prompt; and for
        how many seconds.
        """
        if self.room(row) >= least:
            return None
        unspent = row.total_budget_nano - self.spent_nano
        if unspent < empty:
            return Word.TOTAL_EXCEEDED, (self.period_index + 1) * row.duration_seconds - now
        return (Word.TOTAL_LARGE, 0) if unspent < least else (Word.TOTAL_RESERVED, 1)


def add_up(names: Sequence[str], shards: Sequence[Sequence[int]]) -> dict[str, Total]:
    """The totals of these names, from what ``totals.lua`` replied for every shard; without those that one has lost."""
    found = {}
    for at, name in enumerate(names):
        parts = [_part(reply, at) for reply in shards]
        if all(part[0] >= 0 for part in parts):
            period = max(part[0] for part in parts)
            current = [part for part in parts if part[0] == period]  # a shard may be a moment behind
            found[name] = Total(period, sum(part[1] for part in current), sum(part[2] for part in current))
    return found


def lost(names: Sequence[str], reply: Sequence[int]) -> list[str]:
    """The names whose sums a shard has to be given, from what ``totals.lua`` replied for it."""
    return [name for at, name in enumerate(names) if _part(reply, at)[0] < 0]


def _part(reply: Sequence[int], at: int) -> Sequence[int]:
    return reply[1 + _WIDTH * at : 1 + _WIDTH * (at + 1)]
