"""The words in which scripts answer about a request."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Word(StrEnum):
    """A script's answer. One that refuses the request has the error code that the client receives."""

    code: str

    OK = "ok"
    FULL = "full"  # too many ledger rows wait for PostgreSQL
    LOAD = "load"  # rebuild the user's state first
    TIER = "tier"  # ask again with the row of another tier
    SETTLED = "settled"  # this id is over
    REAPED = "reaped"  # this id was charged by a reaper
    BLOCKED = "blocked", "user_blocked"
    REVOKED = "revoked", "user_blocked"  # the device
    TOKEN = "token", "invalid_token"  # the token is revoked
    STREAMS = "streams", "rate_limit_exceeded"
    RPM = "rpm", "rate_limit_exceeded"
    TPM = "tpm", "rate_limit_exceeded"
    EXCEEDED = "exceeded", "budget_exceeded"
    LARGE = "large", "request_too_large"  # a smaller prompt would fit
    RESERVED = "reserved", "budget_reserved"

    def __new__(cls, word: str, code: str = "") -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.code = code
        return member
