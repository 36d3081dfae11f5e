"""The limits of a service type that the scripts decide by, declared once for the scripts and for their callers.

A script takes them all as ``*limits`` (see ``script``); ``chunks/decide.lua`` says what each of them refuses.
"""

from __future__ import annotations

from functools import lru_cache

from shared.domain.service_types import ServiceType

#: The fields of a row, by the names of the scripts' locals. All are numbers.
LIMITS = {
    "duration": "duration_seconds",
    "budget": "max_budget_nano",
    "rpm": "rpm",
    "tpm": "tpm",
    "max_streams": "max_streams",
}


@lru_cache(maxsize=1024)
def limits_of(row: ServiceType) -> tuple[int, ...]:
    """A row's limits as a script takes them: ``limits`` of its call."""
    return tuple(getattr(row, field) for field in LIMITS.values())
