"""The page of requests, admitted and refused, and the box that finds anything by its id."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlencode

from aiohttp import web

from services.auth.admin.access.sessions import Session
from services.auth.admin.console import pages
from services.auth.admin.console.filters import path
from services.auth.errors import InvalidRequest
from services.auth.settings import SERVICE_TYPES
from services.auth.usage.requests import REQUESTS, Sought
from services.auth.users.operators import USER_ADMIN
from shared.domain.outcome import Outcome
from shared.errors import NotFound

#: The fields of ``Sought``, by their names in the query.
_FIELDS = {"request": "request_id", "user": "user_id", "model": "model", "type": "service_type", "code": "code"}


@pages.page
async def requests(request: web.Request, session: Session) -> web.StreamResponse:
    given = {name: value for name in (*_FIELDS, "until") if (value := request.query.get(name, "").strip())}
    sought = Sought(
        **{field: given.get(name, "") for name, field in _FIELDS.items()},
        until=_minute(given["until"]) if "until" in given else None,
    )
    cursor = request.query.get("cursor")
    found = await request.app[REQUESTS].page(sought, limit=pages.PER_PAGE, cursor=cursor)
    return pages.render(
        request,
        "requests.html",
        section="requests",
        page=found,
        given=given,
        first=not cursor,
        service_types=list(request.app[SERVICE_TYPES].by_name),
        search_tools={row.search_tool for row in request.app[SERVICE_TYPES].by_name.values()},
        codes=[*Outcome, *await request.app[REQUESTS].codes()],
    )


@pages.page
async def find(request: web.Request, session: Session) -> web.StreamResponse:
    """Redirect to the user or the request with this id, else to the users whose ids begin with it."""
    q = request.query.get("q", "").strip()
    try:
        await request.app[USER_ADMIN].get(q)
        return pages.redirect(f"/admin/users/{path(q)}")
    except NotFound:
        pass
    if q and (await request.app[REQUESTS].page(Sought(request_id=q), limit=1)).rows:
        return pages.redirect(f"/admin/requests?{urlencode({'request': q})}")
    return pages.redirect(f"/admin/users?{urlencode({'q': q})}")


def _minute(text: str) -> datetime:
    """:raises InvalidRequest: it is not a date and a time."""
    try:
        return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC)
    except ValueError as error:
        raise InvalidRequest("A time is written like 2026-01-31T18:30.") from error
