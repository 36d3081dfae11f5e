"""The body of the gateway's error answers, in the shape of OpenAI's."""

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
