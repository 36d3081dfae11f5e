"""The API of user management: /user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from services.auth.admin.access import callers
from services.auth.admin.api.models import (
    BlockRequest,
    BudgetRequest,
    ExceptionRequest,
    LedgerBody,
    UserBody,
    UsersBody,
    ledger_body,
    user_body,
)
from services.auth.audit.storage import Actor
from services.auth.error_body import ErrorBody
from services.auth.errors import InvalidRequest
from services.auth.users.exceptions import excepted
from services.auth.users.operators import USER_ADMIN, UserAdmin
from shared import strict_json
from shared.service.web import USER_ID
from shared.telemetry.openapi import Answer, Body, Operation, Parameter

_MOST = 200


async def list_users(request: web.Request) -> web.Response:
    await callers.by_key(request)
    query = _one_each(request, ("limit", "cursor", "q"))
    page, total = await _users(request).page(q=query.get("q", ""), cursor=query.get("cursor"), limit=_limit(query))
    return _answer(UsersBody([user_body(user) for user in page.rows], page.next_cursor, total))


async def counts(request: web.Request) -> web.Response:
    await callers.by_key(request)
    return _answer(await _users(request).counts())


async def pools(request: web.Request) -> web.Response:
    await callers.by_key(request)
    return _answer(
        [{"pool": name, "users": number, "max_users": most} for name, number, most in await _users(request).pools()]
    )


async def get_user(request: web.Request) -> web.Response:
    await callers.by_key(request)
    return await _user(request)


async def get_ledger(request: web.Request) -> web.Response:
    await callers.by_key(request)
    limit = _limit(_one_each(request, ("limit",)))
    page = await _users(request).ledger(_user_id(request), limit=limit)
    return _answer(LedgerBody([ledger_body(row) for row in page.rows]))


async def block(request: web.Request) -> web.Response:
    actor = await _changing(request)
    raw = await request.read()
    asked = _decode(raw, BlockRequest) if raw.strip() else BlockRequest()
    await _users(request).block(_user_id(request), actor, asked.reason or None)
    return await _user(request)


async def unblock(request: web.Request) -> web.Response:
    actor = await _changing(request)
    await _users(request).unblock(_user_id(request), actor)
    return await _user(request)


async def set_budget(request: web.Request) -> web.Response:
    actor = await _changing(request)
    asked = _decode(await request.read(), BudgetRequest)
    await _users(request).set_tier(_user_id(request), actor, asked.service_type)
    return await _user(request)


async def set_exception(request: web.Request) -> web.Response:
    actor = await _changing(request)
    asked = _decode(await request.read(), ExceptionRequest)
    given = excepted(asked.until.timestamp(), asked.extra_budget_usd, without_rates=asked.without_rates)
    await _users(request).set_exception(_user_id(request), actor, given, asked.reason or None)
    return await _user(request)


async def end_exception(request: web.Request) -> web.Response:
    actor = await _changing(request)
    await _users(request).end_exception(_user_id(request), actor)
    return await _user(request)


async def delete_user(request: web.Request) -> web.Response:
    actor = await _changing(request)
    await _users(request).delete(_user_id(request), actor)
    return web.Response(status=204)


async def _changing(request: web.Request) -> Actor:
    """The caller of a change.

    :raises Unauthorized: the key is missing or wrong.
    :raises SlowDown: a limit is reached.
    :raises Forbidden: a viewer's key.
    """
    return callers.changing(request, await callers.by_key(request))


def _users(request: web.Request) -> UserAdmin:
    return request.app[USER_ADMIN]


def _user_id(request: web.Request) -> str:
    """The user of the path, percent-decoded: aiohttp matches segments before it decodes ``%2F``."""
    user_id = request.match_info["user_id"]
    request[USER_ID] = user_id
    return user_id


async def _user(request: web.Request) -> web.Response:
    return _answer(user_body(await _users(request).get(_user_id(request))))


def _answer(body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _decode(raw: bytes, kind: type[Any]) -> Any:
    try:
        return strict_json.decode(raw, kind)
    except ValueError as error:
        raise InvalidRequest("The body is not the JSON object that this path takes.") from error


def _one_each(request: web.Request, names: Sequence[str]) -> dict[str, str]:
    """The parameters of the query that are not empty; unknown ones are ignored."""
    found = {}
    for name in names:
        values = request.query.getall(name, [])
        if len(values) > 1:
            raise InvalidRequest(f"{name} occurs more than once.")
        if values and values[0]:
            found[name] = values[0]
    return found


def _limit(query: dict[str, str]) -> int:
    text = query.get("limit", "50")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MOST)) and 1 <= int(text) <= _MOST):
        raise InvalidRequest(f"limit must be a whole number from 1 to {_MOST}.")
    return int(text)


_TAG = "Users"
_KEY = "admin_key"
_COMMON = {
    401: Answer("No admin key, or a wrong one", ErrorBody, headers=["WWW-Authenticate"]),
    429: Answer("`slow_down`: too many wrong keys from one source", ErrorBody, headers=["Retry-After"]),
    503: Answer("PostgreSQL or Redis could not be asked", ErrorBody, headers=["Retry-After"]),
}
_NOT_FOUND = {404: Answer("There is no such user", ErrorBody)}
_CHANGE = {
    **_COMMON,
    **_NOT_FOUND,
    403: Answer("A viewer's key", ErrorBody),
    503: Answer(
        "Not taken by both PostgreSQL and Redis. What PostgreSQL took is applied to Redis when it is back",
        ErrorBody,
        headers=["Retry-After"],
    ),
}
_ID = Parameter(
    "user_id",
    "`<identity>:<service type>`, percent-encoded: it may hold `/ + = :`.",
    where="path",
    example="0123456789abcdef0123456789abcdef:ai",
)
_LIMIT = Parameter(
    "limit", "How many at most.", schema={"type": "integer", "minimum": 1, "maximum": _MOST, "default": 50}
)
_MALFORMED = {400: Answer("`invalid_request`", ErrorBody)}


def _operation(
    method: str, path: str, handler: Any, summary: str, answers: dict[int, Answer], **more: Any
) -> Operation:
    return Operation(method, path, handler, summary, answers, tag=_TAG, security=_KEY, **more)


_POOLS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["pool", "users", "max_users"],
        "properties": {
            "pool": {"type": "string"},
            "users": {"type": "integer", "description": "A person that uses several of its service types counts once."},
            "max_users": {"type": "integer", "description": "0: no limit."},
        },
    },
}

#: Fixed paths stand before ``/user/{user_id}``, which would match them too.
OPERATIONS = [
    _operation(
        "GET",
        "/user",
        list_users,
        "List or search users",
        {200: Answer("A page, by user id", UsersBody), **_COMMON, **_MALFORMED},
        parameters=[
            _LIMIT,
            Parameter("cursor", "`next_cursor` of the page before."),
            Parameter("q", "Start of the user id."),
        ],
        description="`estimated_total` is exact up to 10,000.",
    ),
    _operation(
        "GET",
        "/user/counts-by-service-type",
        counts,
        "How many users each service type has",
        {
            200: Answer("Users by service type", {"type": "object", "additionalProperties": {"type": "integer"}}),
            **_COMMON,
        },
    ),
    _operation(
        "GET",
        "/user/signup-cap-status",
        pools,
        "How full each pool of service types is",
        {200: Answer("The pools, by name", _POOLS), **_COMMON},
    ),
    _operation(
        "GET",
        "/user/{user_id}",
        get_user,
        "One user",
        {200: Answer("The user", UserBody), **_COMMON, **_NOT_FOUND},
        parameters=[_ID],
    ),
    _operation(
        "DELETE",
        "/user/{user_id}",
        delete_user,
        "Delete a user, and free its place in the capacity of its service type",
        {204: Answer("Deleted; the ledger stays"), **_CHANGE},
        parameters=[_ID],
    ),
    _operation(
        "POST",
        "/user/{user_id}/block",
        block,
        "Block the user's identity in all its service types",
        {200: Answer("The user", UserBody), **_CHANGE, **_MALFORMED},
        parameters=[_ID],
        body=Body(BlockRequest, {"reason": "It spends through a script."}, required=False),
        description="Every gateway refuses it within a second, tokens in hand included.",
    ),
    _operation(
        "POST",
        "/user/{user_id}/unblock",
        unblock,
        "Admit a blocked identity again",
        {200: Answer("The user", UserBody), **_CHANGE},
        parameters=[_ID],
    ),
    _operation(
        "POST",
        "/user/{user_id}/budget",
        set_budget,
        "Give a user the money and rates of another service type's row",
        {
            200: Answer("The user", UserBody),
            **_CHANGE,
            **_MALFORMED,
            422: Answer("`unknown_service_type`", ErrorBody),
        },
        parameters=[_ID],
        body=Body(BudgetRequest, {"service_type": "ai"}),
        description="Open requests are neither refunded nor failed.",
    ),
    _operation(
        "POST",
        "/user/{user_id}/exception",
        set_exception,
        "Let a user spend more, or without rates, until a moment",
        {200: Answer("The user", UserBody), **_CHANGE, **_MALFORMED},
        parameters=[_ID],
        body=Body(
            ExceptionRequest,
            {"until": "2099-01-01T00:00:00Z", "extra_budget_usd": 1, "reason": "It shows the feature at a fair."},
        ),
        description="Instead of the exception that it has. The money is added to the budget of each period that begins "
        "or runs before `until`, at most 31 days ahead. Blocks and total budgets hold all the same.",
    ),
    _operation(
        "DELETE",
        "/user/{user_id}/exception",
        end_exception,
        "End a user's exception before its time",
        {200: Answer("The user", UserBody), **_CHANGE},
        parameters=[_ID],
    ),
    _operation(
        "GET",
        "/user/{user_id}/ledger",
        get_ledger,
        "A user's requests, newest first",
        {200: Answer("Requests", LedgerBody), **_COMMON, **_NOT_FOUND, **_MALFORMED},
        parameters=[_ID, _LIMIT],
        description="A deleted user's are still there.",
    ),
]
