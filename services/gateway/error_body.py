"""The body of the gateway's error answers, in the shape of OpenAI's."""

from __future__ import annotations

import msgspec

from services.gateway.errors import codes
from shared.telemetry.openapi import Answer


class ErrorObject(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None
    mlpa_code: int | None


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error envelope."""

    error: ErrorObject


#: The answers of every path that needs an access token.
AUTHENTICATED = {
    401: Answer(codes(401), ErrorBody, headers=["WWW-Authenticate"]),
    403: Answer(
        f"{codes(403)}. `forbidden`: the service type needs a client key, or another credential; `max_users_reached`: "
        "it is full, for shipped Firefox clients",
        ErrorBody,
    ),
    503: Answer(codes(503), ErrorBody, headers=["Retry-After"]),
}
