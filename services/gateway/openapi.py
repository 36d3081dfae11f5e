"""What all of the gateway's answers may be."""

from __future__ import annotations

import msgspec


class ErrorObject(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None
    mlpa_code: int | None


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error envelope."""

    error: ErrorObject
