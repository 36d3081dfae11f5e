"""The refusals of a request: the error of each word of the scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.gateway.budget.models import RateLimits
from services.gateway.errors import BudgetExceeded, InvalidToken, RateLimited, Unavailable, UserBlocked, kind_of, kinds
from shared.errors import DependencyUnavailable, ServiceError
from shared.state.refusals import Word

_CLASSES = {kind.code: kind for kind in reversed(list(kinds()))}  # where several share a code, their base
#: The error of each word that refuses.
KINDS = {word: _CLASSES[word.row.code] for word in Word if word.row.code}
_UNAVAILABLE = "unavailable"
_LABELS = {word.row.code: word.label for word in KINDS}
#: The reasons of the metrics.
LABELS = tuple(dict.fromkeys((*(word.label for word in KINDS), _UNAVAILABLE)))
#: The reasons that are limits, as opposed to a block or an outage.
UNENFORCED = tuple(
    dict.fromkeys(word.label for word, kind in KINDS.items() if kind not in (UserBlocked, InvalidToken, Unavailable))
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A script's answer other than ``ok``. ``retry_after``: 0 if time changes nothing. ``tier``: the user's, with
    ``Word.TIER``.
    """

    reason: Word
    retry_after: float = 0
    rate_limits: RateLimits | None = None
    tier: str = ""
    extra_nano: int = 0

    def error(self, after_reset: float = 0, **facts: Any) -> ServiceError:
        """The error for the client.

        :param after_reset: seconds after the reset of a spent budget at which it should come back.
        :param facts: the values that the sentence for operators names, where they are known.
        """
        if self.reason is Word.FULL:
            return DependencyUnavailable("postgres", retry_after=5, reason="too many ledger rows wait in Redis")
        kind = KINDS.get(self.reason)
        if kind is None:  # settled: withdrawn before it was admitted
            return DependencyUnavailable("redis")
        given: dict[str, Any] = {}
        if self.retry_after:
            given["retry_after"] = self.retry_after + (after_reset if kind is BudgetExceeded else 0)
        if kind is RateLimited:
            given["reason"] = self.reason.label
        error = kind(self.reason.row.message, **given)
        if self.rate_limits is not None:
            error.headers.update(self.rate_limits.headers())
        if facts and self.reason.row.noted:
            error.why = self.reason.row.noted.format(**facts)
        return error


def label(error: ServiceError) -> str:
    """The metric reason of an error of an admission."""
    return error.reason if isinstance(error, RateLimited) else _LABELS.get(kind_of(error).code, _UNAVAILABLE)
