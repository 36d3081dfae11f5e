"""The answer to a support ticket: the reasons that would refuse a user's request now."""

from __future__ import annotations

from dataclasses import dataclass

from services.auth.admin.console.filters import duration, usd
from services.auth.users.operators import User
from shared.domain.service_types import ServiceType
from shared.state.decisions import Outlook
from shared.state.layout import Standing
from shared.state.refusals import Word


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason. ``code`` is the code that the client receives."""

    code: str
    text: str


def refusals(
    user: User, row: ServiceType | None, tier: ServiceType | None, outlook: Outlook | None, least: int
) -> list[Refusal]:
    """The forecast of the admission scripts, in words.

    :param row: the row of the user's service type.
    :param tier: the row whose money and rates hold.
    :param outlook: None when Redis can't be asked; then the answer has only the reasons that PostgreSQL knows.
    :param least: the cost of the request that the outlook is about.
    """
    standing = Standing.of(blocked=user.row.blocked_at, revoked=user.row.device_revoked_at)
    found = {Word(standing): 0.0} if standing is not Standing.GOOD else {}
    if outlook is not None:
        found = outlook.refusals
    spent = user.spent
    answers = [
        Refusal(
            reason.row.code,
            reason.row.forecast.format(
                outlook=outlook,
                tier=tier,
                wait=duration(wait),
                budget=usd(spent.max_budget_nano),
                left=usd(spent.max_budget_nano - spent.spent_nano),
                least=usd(least),
                everyone=f"all users of {user.row.service_type} together",
            ),
        )
        for reason, wait in found.items()
    ]
    if outlook is None and tier is not None:
        answers.append(
            Refusal(
                "unavailable", "Redis can't be asked from here. Where the gateways can't ask it, they admit no request."
            )
        )
    if row is not None and not row.enabled:
        answers.append(Refusal("unavailable", "The service type is switched off, for all its users."))
    if tier is None:
        answers.append(Refusal("invalid_scope", "There is no such service type any more."))
    return answers
