"""LiteLLM's budgets and spend."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from shared.domain.money import NANO
from shared.domain.service_types import DURATIONS, ServiceType

_PREFIX = "mlpa:"
#: LiteLLM's id of the budget of users with an exception; no service type can have its name.
EXCEPTIONS = f"{_PREFIX}+exceptions"
#: A million USD.
_NO_LIMIT = 10**6 * NANO
_DURATIONS = {seconds: name for name, seconds in DURATIONS.items()}


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget of LiteLLM. It limits money only: the gateway limits requests and tokens per minute.

    LiteLLM's period is a calendar day, week (from Monday), month or hour of UTC; MLPA's is a multiple of ``duration``
    since 1970. One of LiteLLM's overlaps at most two of MLPA's, so a factor of 2 never limits a user within the budget.
    """

    name: str
    max_budget_nano: int
    duration: str

    @classmethod
    def of(cls, row: ServiceType, factor: float, *, enforced: bool = True) -> Budget:
        """The budget of a service type's users: ``factor`` times that of the row, to whole nano-dollars.

        A row that is not enforced refuses nobody, and then LiteLLM must not either.
        """
        if not enforced:
            return cls(budget_name(row.name), _NO_LIMIT, _DURATIONS[row.duration_seconds])
        amount = (row.max_budget_nano * Decimal(str(factor))).to_integral_value(ROUND_HALF_EVEN)
        return cls(budget_name(row.name), int(amount), _DURATIONS[row.duration_seconds])

    @classmethod
    def of_exceptions(cls) -> Budget:
        """The budget of users while they may spend more than their tier: the gateways alone limit them."""
        return cls(EXCEPTIONS, _NO_LIMIT, "1d")

    @property
    def max_budget_usd(self) -> float:
        """The limit as LiteLLM stores it."""
        return self.max_budget_nano / NANO


def budget_name(service_type: str) -> str:
    """LiteLLM's id of the budget that users of a service type (a tier) have."""
    return _PREFIX + service_type
