"""The API of user management: /user."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

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
from services.auth.admin.api.requests import (
    CHANGE,
    COMMON,
    CURSOR,
    LIMIT,
    MALFORMED,
    answer,
    changing,
    decode,
    limit,
    one_each,
    operation,
)
from services.auth.audit.log import AUDIT_LOG
from services.auth.erasure.export import EXPORTS
from services.auth.erasure.services import ERASURES
from services.auth.errors import ErrorBody
from services.auth.users.exceptions import excepted
from services.auth.users.operators import USER_ADMIN, UserAdmin
from shared.domain.identity import identity_of
from shared.errors import DependencyUnavailable, NotFound
from shared.service.web import USER_ID
from shared.telemetry.openapi import Answer, Body, Parameter


async def list_users(request: web.Request) -> web.Response:
    await callers.by_key(request)
    query = one_each(request, ("limit", "cursor", "q"))
    page, total = await _users(request).page(q=query.get("q", ""), cursor=query.get("cursor"), limit=limit(query))
    return answer(UsersBody([user_body(user) for user in page.rows], page.next_cursor, total))


async def counts(request: web.Request) -> web.Response:
    await callers.by_key(request)
    return answer(await _users(request).counts())


async def pools(request: web.Request) -> web.Response:
    await callers.by_key(request)
    return answer(
        [{"pool": name, "users": number, "max_users": most} for name, number, most in await _users(request).pools()]
    )


async def get_user(request: web.Request) -> web.Response:
    await callers.by_key(request)
    return await _user(request)


async def get_ledger(request: web.Request) -> web.Response:
    await callers.by_key(request)
    page = await _users(request).ledger(_user_id(request), limit=limit(one_each(request, ("limit",))))
    return answer(LedgerBody([ledger_body(row) for row in page.rows]))


async def block(request: web.Request) -> web.Response:
    actor = await changing(request)
    raw = await request.read()
    asked = decode(raw, BlockRequest) if raw.strip() else BlockRequest()
    try:
        await _users(request).block(_user_id(request), actor, asked.reason or None)
    except NotFound:  # or it was erased
        await request.app[ERASURES].block(identity_of(_user_id(request)), actor, asked.reason or None)
        return web.Response(status=204)
    return await _user(request)


async def unblock(request: web.Request) -> web.Response:
    actor = await changing(request)
    try:
        await _users(request).unblock(_user_id(request), actor)
    except NotFound:  # an identity without users, or one that was erased, and its block is kept
        identity = identity_of(_user_id(request))
        if not await _users(request).unblock_identity(identity, actor):
            await request.app[ERASURES].unblock(identity, actor)
        return web.Response(status=204)
    return await _user(request)


async def set_budget(request: web.Request) -> web.Response:
    actor = await changing(request)
    asked = decode(await request.read(), BudgetRequest)
    await _users(request).set_tier(_user_id(request), actor, asked.service_type)
    return await _user(request)


async def set_exception(request: web.Request) -> web.Response:
    actor = await changing(request)
    asked = decode(await request.read(), ExceptionRequest)
    given = excepted(asked.until.timestamp(), asked.extra_budget_usd, without_rates=asked.without_rates)
    await _users(request).set_exception(_user_id(request), actor, given, asked.reason or None)
    return await _user(request)


async def end_exception(request: web.Request) -> web.Response:
    actor = await changing(request)
    await _users(request).end_exception(_user_id(request), actor)
    return await _user(request)


async def delete_user(request: web.Request) -> web.Response:
    actor = await changing(request)
    await request.app[ERASURES].erase(identity_of(_user_id(request)), actor)
    return web.Response(status=204)


async def export(request: web.Request) -> web.StreamResponse:
    actor, identity = await changing(request), identity_of(_user_id(request))
    pieces = request.app[EXPORTS].export(identity)
    first = await anext(pieces)
    await request.app[AUDIT_LOG].record(actor, "user.export", identity)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(first)
    try:
        async for piece in pieces:
            await response.write(piece)
    except DependencyUnavailable:
        if request.transport is not None:
            request.transport.abort()  # what was sent is not the whole
    return response


def _users(request: web.Request) -> UserAdmin:
    return request.app[USER_ADMIN]


def _user_id(request: web.Request) -> str:
    """The user of the path, percent-decoded: aiohttp matches segments before it decodes ``%2F``."""
    user_id = request.match_info["user_id"]
    request[USER_ID] = user_id
    return user_id


async def _user(request: web.Request) -> web.Response:
    return answer(user_body(await _users(request).get(_user_id(request))))


_TAG = "Users"
_NOT_FOUND = {404: Answer("There is no such user", ErrorBody)}
_USER = {200: Answer("The user", UserBody)}
_CHANGE = {**_USER, **CHANGE, **_NOT_FOUND}
_READ_ALL = {**COMMON, **_NOT_FOUND, 403: Answer("A viewer's key", ErrorBody)}
_EXPORT = {
    "type": "object",
    "required": ["identity", "exported_at", "redis", "litellm", "postgresql"],
    "properties": {
        "identity": {"type": "string"},
        "exported_at": {"type": "string", "format": "date-time"},
        "redis": {"type": "object", "description": "By key; `fxa`: the cached verifications."},
        "litellm": {"type": "object", "description": "The customers, and the tables and columns that name them."},
        "postgresql": {"type": "object", "description": "The rows of each table."},
    },
}
_ID = Parameter(
    "user_id",
    "`<identity>:<service type>`, percent-encoded: it may hold `/ + = :`.",
    where="path",
    example="0123456789abcdef0123456789abcdef:ai",
)
_ANY_ID = Parameter(
    "user_id",
    "`<identity>:<service type>` or `<identity>`, percent-encoded: it may hold `/ + = :`.",
    where="path",
    example="fedcba9876543210fedcba9876543210:ai",
)
#: Of an example, which is good for as long as a process runs, as a rule.
_IN_A_MONTH = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%dT00:00:00Z}"

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
    operation(
        *(_TAG, "GET /user", list_users, "List or search users"),
        {200: Answer("A page, by user id", UsersBody), **COMMON, **MALFORMED},
        *(LIMIT, CURSOR, Parameter("q", "Start of the user id.")),
        description="`estimated_total` is exact up to 10,000.",
    ),
    operation(
        *(_TAG, "GET /user/counts-by-service-type", counts, "How many users each service type has"),
        {200: Answer("By service type", {"type": "object", "additionalProperties": {"type": "integer"}}), **COMMON},
    ),
    operation(
        *(_TAG, "GET /user/signup-cap-status", pools, "How full each pool of service types is"),
        {200: Answer("The pools, by name", _POOLS), **COMMON},
    ),
    operation(_TAG, "GET /user/{user_id}", get_user, "One user", {**_USER, **COMMON, **_NOT_FOUND}, _ID),
    operation(
        *(_TAG, "DELETE /user/{user_id}", delete_user, "Erase the user's identity in all its service types"),
        {204: Answer("Erased"), **CHANGE, **_NOT_FOUND},
        _ANY_ID,
        description="Its tokens are refused, open requests end, and its places in the capacity become free. Ledger and "
        "audit log keep their rows under a digest, as what was spent in this period, blocks and revocations are kept "
        "for an identity that returns. LiteLLM follows in the background.",
    ),
    operation(
        *(_TAG, "POST /user/{user_id}/block", block, "Block the user's identity in all its service types"),
        {**_CHANGE, **MALFORMED, 204: Answer("It was erased, and is refused if it returns")},
        _ID,
        body=Body(BlockRequest, {"reason": "It spends through a script."}, required=False),
        description="Every gateway refuses it within a second, tokens in hand included. Of an erased one, give the "
        "identity alone.",
    ),
    operation(
        *(_TAG, "POST /user/{user_id}/unblock", unblock, "Admit a blocked identity again"),
        {**_CHANGE, 204: Answer("It has no user, or was erased, and may enter")},
        _ID,
    ),
    operation(
        *(_TAG, "POST /user/{user_id}/budget", set_budget, "Give a user the money and rates of another row"),
        {**_CHANGE, **MALFORMED, 422: Answer("`unknown_service_type`", ErrorBody)},
        _ID,
        body=Body(BudgetRequest, {"service_type": "ai"}),
        description="Open requests are neither refunded nor failed.",
    ),
    operation(
        *(_TAG, "POST /user/{user_id}/exception", set_exception, "Let a user spend more, or without rates, for a time"),
        {**_CHANGE, **MALFORMED},
        _ID,
        body=Body(
            ExceptionRequest, {"until": _IN_A_MONTH, "extra_budget_usd": 1, "reason": "It shows the feature at a fair."}
        ),
        description="Replaces the exception that it has. The money is added to the budget of each period that begins "
        "or runs before `until`, at most 31 days ahead. Blocks and total budgets still apply.",
    ),
    operation(
        _TAG, "DELETE /user/{user_id}/exception", end_exception, "End a user's exception before its time", _CHANGE, _ID
    ),
    operation(
        *(_TAG, "GET /user/{user_id}/export", export, "All that is held about the user's identity"),
        {200: Answer("The rows of each table, what is in Redis, and what LiteLLM has", _EXPORT), **_READ_ALL},
        _ANY_ID,
        description="The audit log has an entry about each export. An answer that breaks off is not the whole.",
    ),
    operation(
        *(_TAG, "GET /user/{user_id}/ledger", get_ledger, "A user's requests, newest first"),
        {200: Answer("Requests", LedgerBody), **COMMON, **_NOT_FOUND, **MALFORMED},
        *(_ID, LIMIT),
        description="An erased user's are there under its digest.",
    ),
]
