"""The answer to a support ticket: what a request of a user would be refused for at this moment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.auth.admin.console.filters import duration, usd
from services.auth.users.operators import User
from services.auth.users.spending import Rates
from shared.domain.service_types import ServiceType


@dataclass(frozen=True, slots=True)
class Refusal:
    """``code`` is what the client gets to see."""

    code: str
    text: str


def refusals(user: User, tier: ServiceType | None, rates: Rates | None, now: datetime) -> list[Refusal]:
    """
    :param tier: the row whose money and rates hold.
    :param rates: None when Redis can't tell; then nothing is said about them.
    """
    found = []
    row, spent = user.row, user.spent
    if row.blocked_at is not None:
        found.append(Refusal("user_blocked", "The identity is blocked, in all its service types."))
    if row.device_revoked_at is not None:
        found.append(Refusal("user_blocked", "The device is revoked. That can't be undone; it has to enrol a new key."))
    if tier is None:
        return [*found, Refusal("invalid_scope", "There is no such service type any more.")]
    left = duration(spent.resets_at - now.timestamp())
    if spent.spent_nano >= spent.max_budget_nano:
        found.append(Refusal("budget_exceeded", f"All of {usd(spent.max_budget_nano)} is spent. Resets in {left}."))
    elif spent.spent_nano + spent.reserved_nano >= spent.max_budget_nano:
        found.append(Refusal("budget_reserved", "Open requests may cost what is left; it comes free when they end."))
    if rates is not None:
        found += _rate_refusals(tier, rates)
    return found


def _rate_refusals(tier: ServiceType, rates: Rates) -> list[Refusal]:
    code = "rate_limit_exceeded"
    found = []
    if tier.rpm and rates.requests >= tier.rpm:
        found.append(Refusal(code, f"{rates.requests} requests in the last minute, of {tier.rpm}."))
    if tier.tpm and rates.tokens >= tier.tpm:
        found.append(Refusal(code, f"{rates.tokens} tokens in the last minute, of {tier.tpm}."))
    if tier.max_streams and rates.open_requests >= tier.max_streams:
        found.append(Refusal(code, f"{rates.open_requests} requests are open, of {tier.max_streams}."))
    return found
