"""The answer to a support ticket: the reasons that would refuse a user's request now."""

from __future__ import annotations

from dataclasses import dataclass

from services.auth.admin.console.filters import duration, usd
from services.auth.users.operators import User
from shared.domain.service_types import ServiceType
from shared.state.decisions import OF_ALL, Outlook
from shared.state.layout import Standing
from shared.state.refusals import Word


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason. ``code`` is the code that the client receives."""

    code: str
    text: str


def refusals(user: User, tier: ServiceType | None, outlook: Outlook | None, least: int) -> list[Refusal]:
    """The forecast of the admission scripts, in words.

    :param tier: the row whose money and rates hold.
    :param outlook: None when Redis can't be asked; then the answer has only the reasons that PostgreSQL knows.
    :param least: the cost of the request that the outlook is about.
    """
    standing = Standing.of(blocked=user.row.blocked_at, revoked=user.row.device_revoked_at)
    found = dict.fromkeys([standing.value] if standing is not Standing.GOOD else [], 0.0)
    if outlook is not None:
        found = outlook.refusals
    elif tier is not None:
        found["unknown"] = 0
    answers = [
        Refusal(_code(reason), _in_words(reason, wait, user, tier, outlook, least)) for reason, wait in found.items()
    ]
    if tier is None:
        answers.append(Refusal("invalid_scope", "There is no such service type any more."))
    return answers


def _code(reason: str) -> str:
    return "unavailable" if reason.endswith("unknown") else Word(reason.removeprefix(OF_ALL)).code


def _in_words(
    reason: str, wait: float, user: User, tier: ServiceType | None, outlook: Outlook | None, least: int
) -> str:
    """An explanation."""
    spent, soon = user.spent, f"A place comes free in {duration(wait)}."
    everyone = f"all users of {user.row.service_type} together"
    match reason:
        case "blocked":
            return "The identity is blocked, in all its service types."
        case "revoked":
            return "The device is revoked. That can't be undone; it has to enrol a new key."
        case "token":
            return "A token of this user is revoked; that one alone is refused until it expires."
        case "exceeded":
            return f"All of {usd(spent.max_budget_nano)} is spent. Resets in {duration(wait)}."
        case "large":
            left = f"{usd(spent.max_budget_nano - spent.spent_nano)} of {usd(spent.max_budget_nano)} is left"
            return f"Only {left}, and the cheapest request below cost {usd(least)}."
        case "reserved":
            return "Open requests may cost what is left; it comes free when they end."
        case "total_exceeded":
            return f"The total budget of {everyone} is spent. Resets in {duration(wait)}."
        case "total_large":
            return f"The total budget of {everyone} has less left than {usd(least)}."
        case "total_reserved":
            return f"Open requests may cost what the total budget of {everyone} has left."
        case "total_unknown":
            return f"The gateways have not added up yet what {everyone} spent."
    if outlook is None or tier is None:
        return "Redis can't be asked from here. Where the gateways can't ask it, they admit no request."
    figures = {
        "rpm": f"{outlook.requests} requests in the last minute, of {tier.rpm}. {soon}",
        "tpm": f"{outlook.tokens} tokens in the last minute, of {tier.tpm}. {soon}",
        "streams": f"{outlook.open_requests} requests are open, of {tier.max_streams}.",
    }
    return figures[reason]
