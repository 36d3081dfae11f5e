"""The answers of scripts about a request.

A refusal's row has all about it, except the script that decides it and the error class of a code that others share.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Self


class Row(NamedTuple):
    """A refusal.

    :ivar code: of the error that the client gets. If not only scripts decide it, the gateway has a class of this code;
        otherwise ``status``, ``mlpa_code`` and ``message`` are the whole of it.
    :ivar forecast: the console's sentence, a format for what ``auth/admin/console/support.py`` gives it.
    :ivar noted: the sentence of a refused request, for operators, a format for what the gateway decided by; empty where
        the client's message says it.
    :ivar counted_as: the reason in the metrics of budgets, where that is not the code.
    :ivar message: the client's, where that is not its class's.
    """

    code: str = ""
    forecast: str = ""
    counted_as: str = ""
    message: str | None = None
    noted: str = ""
    status: int = 0
    mlpa_code: int | None = None


_NONE = Row()
_LARGE = "The request may cost more than is left of the budget. A shorter one may fit."


class Word(StrEnum):
    """An answer; ``row.code`` is empty unless it is a refusal."""

    row: Row

    OK = "ok"
    FULL = "full"  # too many ledger rows wait for PostgreSQL
    LOAD = "load"  # rebuild the user's state first
    TIER = "tier"  # ask again with the row of another tier
    SETTLED = "settled"  # this id is over
    REAPED = "reaped"  # this id was charged by a reaper
    BLOCKED = (
        "blocked",
        Row(
            "user_blocked",
            "The identity is blocked, in all its service types.",
            "blocked",
            noted="The identity is blocked.",
        ),
    )
    REVOKED = (
        "revoked",
        Row(
            "user_blocked",
            "The device is revoked. That can't be undone; it has to enrol a new key.",
            "blocked",
            noted="The device is revoked.",
        ),
    )
    TOKEN = (
        "token",
        Row(
            "invalid_token",
            "A token of this user is revoked; that one alone is refused until it expires.",
            "revoked",
            "The access token was revoked.",
        ),
    )
    STREAMS = (
        "streams",
        Row(
            "rate_limit_exceeded",
            "{outlook.open_requests} requests are open, of {tier.max_streams}.",
            "streams",
            noted="{tier.max_streams} requests of the user are open, of {tier.max_streams} (tier {tier.name}).",
        ),
    )
    RPM = (
        "rpm",
        Row(
            "rate_limit_exceeded",
            "{outlook.requests} requests in the last minute, of {tier.rpm}. A place comes free in {wait}.",
            "rpm",
            noted="{tier.rpm} of {tier.rpm} requests of a minute are used (tier {tier.name}).",
        ),
    )
    TPM = (
        "tpm",
        Row(
            "rate_limit_exceeded",
            "{outlook.tokens} tokens in the last minute, of {tier.tpm}. A place comes free in {wait}.",
            "tpm",
            noted="{tier.tpm} of {tier.tpm} tokens of a minute are used (tier {tier.name}).",
        ),
    )
    EXCEEDED = (
        "exceeded",
        Row(
            "budget_exceeded",
            "All of {budget} is spent. Resets in {wait}.",
            noted="The user's {budget} USD (tier {tier.name}) are spent.",
        ),
    )
    LARGE = (
        "large",
        Row(
            "request_too_large",
            "Only {left} of {budget} is left, and the cheapest request below cost {least}.",
            message=_LARGE,
            noted="The prompt may cost more than is left of the user's {budget} USD (tier {tier.name}).",
        ),
    )
    RESERVED = (
        "reserved",
        Row(
            "budget_reserved",
            "Open requests may cost what is left; it comes free when they end.",
            message="The rest of the budget is reserved by requests in flight.",
            noted="Open requests reserve what is left of the user's {budget} USD (tier {tier.name}).",
            status=429,
            mlpa_code=2,
        ),
    )
    # Of the total budget that all users of a service type share
    TOTAL_EXCEEDED = (
        "total_exceeded",
        Row(
            "budget_exceeded",
            "The total budget of {everyone} is spent. Resets in {wait}.",
            message="The budget of all users together is spent.",
            noted="{spent} of {budget} USD of the service type {tier.name} are spent.",
        ),
    )
    TOTAL_LARGE = (
        "total_large",
        Row(
            "request_too_large",
            "The total budget of {everyone} has less left than {least}.",
            message=_LARGE,
            noted="{spent} of {budget} USD of {tier.name} are spent, and the prompt may cost more than the rest.",
        ),
    )
    TOTAL_RESERVED = (
        "total_reserved",
        Row(
            "budget_reserved",
            "Open requests may cost what the total budget of {everyone} has left.",
            noted="Of {budget} USD of the service type {tier.name}, {spent} are spent and {reserved} reserved.",
        ),
    )
    TOTAL_UNKNOWN = ("total_unknown", Row("unavailable", "The gateways have not added up yet what {everyone} spent."))

    def __new__(cls, word: str, row: Row = _NONE) -> Self:
        member = str.__new__(cls, word)
        member._value_, member.row = word, row
        return member

    @property
    def label(self) -> str:
        """The reason in the metrics of budgets."""
        return self.row.counted_as or self.row.code
