"""Why a request is refused: the words of the scripts, and the error and the metric reason of each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from services.gateway.budget.models import RateLimits
from services.gateway.errors import (
    BudgetExceeded,
    BudgetReserved,
    MayCostTooMuch,
    RateLimited,
    TokenRevoked,
    UserBlocked,
)
from shared.errors import DependencyUnavailable, ServiceError


class Word(StrEnum):
    """What a script answers about a request."""

    OK = "ok"
    FULL = "full"  # too many ledger rows wait for PostgreSQL
    LOAD = "load"  # rebuild the user's state first
    TIER = "tier"  # ask again with the row of another tier
    SETTLED = "settled"  # this id is over
    REAPED = "reaped"  # this id was charged by a reaper
    BLOCKED = "blocked"
    REVOKED = "revoked"  # the device
    TOKEN = "token"  # noqa: S105  (the token is revoked)
    STREAMS = "streams"
    RPM = "rpm"
    TPM = "tpm"
    EXCEEDED = "exceeded"
    LARGE = "large"  # a smaller prompt would fit
    RESERVED = "reserved"


class _Row(NamedTuple):
    """``label``: the reason in ``budget_refusals_total``. ``waits``: the script tells how long to wait."""

    kind: type[ServiceError]
    label: str
    waits: bool = False


_ROWS = {
    Word.EXCEEDED: _Row(BudgetExceeded, "budget_exceeded", waits=True),
    Word.RESERVED: _Row(BudgetReserved, "budget_reserved"),
    Word.LARGE: _Row(MayCostTooMuch, "request_too_large"),
    Word.RPM: _Row(RateLimited, "rpm", waits=True),
    Word.TPM: _Row(RateLimited, "tpm", waits=True),
    Word.STREAMS: _Row(RateLimited, "streams", waits=True),
    Word.BLOCKED: _Row(UserBlocked, "blocked"),
    Word.REVOKED: _Row(UserBlocked, "blocked"),
    Word.TOKEN: _Row(TokenRevoked, "revoked"),
}
_UNAVAILABLE = "unavailable"
_LABELS = {row.kind: row.label for row in _ROWS.values()}
LABELS = tuple(dict.fromkeys((*(row.label for row in _ROWS.values()), _UNAVAILABLE)))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A script's answer other than ``ok``. ``tier``: the user's, with ``Word.TIER``."""

    reason: Word
    tier: str = ""
    extra_nano: int = 0
    retry_after: float = 0
    rate_limits: RateLimits | None = None

    def error(self, after_reset: float = 0) -> ServiceError:
        """What the client gets.

        :param after_reset: seconds after the reset of a spent budget at which it should come back.
        """
        if self.reason is Word.FULL:
            return DependencyUnavailable("postgres", retry_after=5, reason="too many ledger rows wait in Redis")
        row = _ROWS.get(self.reason)
        if row is None:  # settled: withdrawn before it was admitted
            return DependencyUnavailable("redis")
        given: dict[str, Any] = {"headers": self.rate_limits.headers() if self.rate_limits else {}}
        if row.waits:
            given["retry_after"] = self.retry_after + (after_reset if self.reason is Word.EXCEEDED else 0)
        if row.kind is RateLimited:
            given["reason"] = row.label
        return row.kind(**given)


def would_label(word: Word) -> str:
    """The metric reason of a refusal that was not enforced."""
    return _ROWS[word].label


#: What can be refused by a user's own budget and rates alone.
UNENFORCED = tuple(
    dict.fromkeys(row.label for word, row in _ROWS.items() if word not in (Word.BLOCKED, Word.REVOKED, Word.TOKEN))
)


def label(error: ServiceError) -> str:
    """The metric reason of an error of an admission."""
    return error.reason if isinstance(error, RateLimited) else _LABELS.get(type(error), _UNAVAILABLE)
