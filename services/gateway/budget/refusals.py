"""The refusals of a request: the error and the metric reason of each word of the scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from services.gateway.budget.models import RateLimits
from services.gateway.errors import (
    BudgetExceeded,
    BudgetReserved,
    GatewayError,
    MayCostTooMuch,
    RateLimited,
    TokenRevoked,
    UserBlocked,
)
from shared.errors import DependencyUnavailable, ServiceError
from shared.state.refusals import Word


class _Row(NamedTuple):
    """``counted_as``: the metric reason, unless it is the error's. ``waits``: the script answers how long to wait."""

    kind: type[GatewayError]
    counted_as: str = ""
    waits: bool = False

    @property
    def label(self) -> str:
        """The reason in ``budget_refusals_total``."""
        return self.counted_as or self.kind.counted_as


_ROWS = {
    Word.EXCEEDED: _Row(BudgetExceeded, waits=True),
    Word.RESERVED: _Row(BudgetReserved),
    Word.LARGE: _Row(MayCostTooMuch),
    Word.RPM: _Row(RateLimited, "rpm", waits=True),
    Word.TPM: _Row(RateLimited, "tpm", waits=True),
    Word.STREAMS: _Row(RateLimited, "streams", waits=True),
    Word.BLOCKED: _Row(UserBlocked, "blocked"),
    Word.REVOKED: _Row(UserBlocked, "blocked"),
    Word.TOKEN: _Row(TokenRevoked, "revoked"),
}
_UNAVAILABLE = "unavailable"
_LABELS: dict[type[ServiceError], str] = {row.kind: row.label for row in _ROWS.values()}
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
