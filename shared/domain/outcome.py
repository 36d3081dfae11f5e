"""How a paid request ended: the words of the ledger, of Redis and of the metrics."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """How a request ended. Stored as it is, so a word never changes its meaning."""

    SUCCESS = "success"
    #: This service, LiteLLM or a provider failed, or the request was ended from outside.
    ERROR = "error"
    #: The client left.
    ABORT = "abort"
    #: No data came in time.
    TIMEOUT = "timeout"
    #: Its gateway was gone, and a reaper charged it whole.
    EXPIRED = "expired"
