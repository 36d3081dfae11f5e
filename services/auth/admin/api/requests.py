"""The parts that all paths of the API share: parsing, answers, documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from services.auth.admin.access import callers
from services.auth.audit.storage import Actor
from services.auth.errors import ErrorBody, InvalidRequest
from shared import strict_json
from shared.telemetry.openapi import Answer, Operation, Parameter

_MOST = 200

COMMON = {
    401: Answer("No admin key, or a wrong one", ErrorBody, headers=["WWW-Authenticate"]),
    429: Answer("`slow_down`: too many wrong keys from one source", ErrorBody, headers=["Retry-After"]),
    503: Answer("PostgreSQL or Redis could not be asked", ErrorBody, headers=["Retry-After"]),
}
CHANGE = {
    **COMMON,
    403: Answer("A viewer's key", ErrorBody),
    503: Answer(
        "Not taken by both PostgreSQL and Redis. What PostgreSQL took is applied to Redis when it is back",
        ErrorBody,
        headers=["Retry-After"],
    ),
}
MALFORMED = {400: Answer("`invalid_request`", ErrorBody)}
LIMIT = Parameter(
    "limit", "How many at most.", schema={"type": "integer", "minimum": 1, "maximum": _MOST, "default": 50}
)
CURSOR = Parameter("cursor", "`next_cursor` of the page before.")


def operation(
    tag: str, route: str, handler: Any, summary: str, answers: dict[int, Answer], *parameters: Parameter, **more: Any
) -> Operation:
    """An operation for which a caller needs an admin key. ``route``: its method and path."""
    method, path = route.split()
    return Operation(
        method, path, handler, summary, answers, tag=tag, parameters=parameters, security="admin_key", **more
    )


async def changing(request: web.Request) -> Actor:
    """The caller of a change.

    :raises Unauthorized: the key is missing or wrong.
    :raises SlowDown: a limit is reached.
    :raises Forbidden: a viewer's key.
    """
    return callers.changing(request, await callers.by_key(request))


def answer(body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def decode(raw: bytes, kind: type[Any]) -> Any:
    """:raises InvalidRequest: the bytes are not such a body."""
    try:
        return strict_json.decode(raw, kind)
    except ValueError as error:
        raise InvalidRequest("The body is not the JSON object that this path takes.") from error


def one_each(request: web.Request, names: Sequence[str]) -> dict[str, str]:
    """The parameters of the query that are not empty; unknown ones are ignored.

    :raises InvalidRequest: one occurs more than once.
    """
    found = {}
    for name in names:
        values = request.query.getall(name, [])
        if len(values) > 1:
            raise InvalidRequest(f"{name} occurs more than once.")
        if values and values[0]:
            found[name] = values[0]
    return found


def limit(query: dict[str, str]) -> int:
    """:raises InvalidRequest: it is out of range."""
    text = query.get("limit", "50")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MOST)) and 1 <= int(text) <= _MOST):
        raise InvalidRequest(f"limit must be a whole number from 1 to {_MOST}.")
    return int(text)
