"""The answers of scripts about a request; of a refusal all but its error class and the script that decides it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Self


class Row(NamedTuple):
    """A refusal.

    :ivar code: of the error that the client gets; the gateway's class of this code has the rest of it.
    :ivar forecast: the console's sentence, a format for what ``auth/admin/console/support.py`` gives it.
    :ivar counted_as: the reason in the metrics of budgets, where that is not the code.
    :ivar message: the client's, where that is not its class's.
    """

    code: str = ""
    forecast: str = ""
    counted_as: str = ""
    message: str | None = None


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
    BLOCKED = "blocked", Row("user_blocked", "The identity is blocked, in all its service types.", "blocked")
    REVOKED = (
        "revoked",
        Row("user_blocked", "The device is revoked. That can't be undone; it has to enrol a new key.", "blocked"),
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
        Row("rate_limit_exceeded", "{outlook.open_requests} requests are open, of {tier.max_streams}.", "streams"),
    )
    RPM = (
        "rpm",
        Row(
            "rate_limit_exceeded",
            "{outlook.requests} requests in the last minute, of {tier.rpm}. A place comes free in {wait}.",
            "rpm",
        ),
    )
    TPM = (
        "tpm",
        Row(
            "rate_limit_exceeded",
            "{outlook.tokens} tokens in the last minute, of {tier.tpm}. A place comes free in {wait}.",
            "tpm",
        ),
    )
    EXCEEDED = "exceeded", Row("budget_exceeded", "All of {budget} is spent. Resets in {wait}.")
    LARGE = (
        "large",
        Row(
            "request_too_large",
            "Only {left} of {budget} is left, and the cheapest request below cost {least}.",
            message=_LARGE,
        ),
    )
    RESERVED = (
        "reserved",
        Row("budget_reserved", "Open requests may cost what is left; it comes free when they end."),
    )
    # Of the total budget that all users of a service type share
    TOTAL_EXCEEDED = (
        "total_exceeded",
        Row(
            "budget_exceeded",
            "The total budget of {everyone} is spent. Resets in {wait}.",
            message="The budget of all users together is spent.",
        ),
    )
    TOTAL_LARGE = (
        "total_large",
        Row("request_too_large", "The total budget of {everyone} has less left than {least}.", message=_LARGE),
    )
    TOTAL_RESERVED = (
        "total_reserved",
        Row("budget_reserved", "Open requests may cost what the total budget of {everyone} has left."),
    )
    TOTAL_UNKNOWN = (
        "total_unknown",
        Row("unavailable", "The gateways have not added up yet what {everyone} spent."),
    )

    def __new__(cls, word: str, row: Row = _NONE) -> Self:
        member = str.__new__(cls, word)
        member._value_, member.row = word, row
        return member

    @property
    def label(self) -> str:
        """The reason in the metrics of budgets."""
        return self.row.counted_as or self.row.code
