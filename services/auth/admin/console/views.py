"""The pages of the console that only show something, and the list of all its operations."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from services.auth import keys, pagination
from services.auth.admin.access.sessions import Session
from services.auth.admin.console import assets, device_views, filters, pages, sign_in_views, user_views
from services.auth.audit import storage as audit
from services.auth.errors import InvalidRequest
from shared.errors import DependencyUnavailable
from shared.openapi import Answer, Operation
from shared.serve import DRAIN


@pages.page
async def overview(request: web.Request, session: Session) -> web.StreamResponse:
    figures = await request.app[keys.OVERVIEWS].read(
        in_days=request.query.get("span") == "30d", draining=request.app[DRAIN].begun
    )
    return pages.render(
        request, "overview.html", section="overview", figures=figures, dollars=filters.usd, numbers=filters.compact
    )


@pages.page
async def audit_log(request: web.Request, session: Session) -> web.StreamResponse:
    subject, cursor = request.query.get("q", "").strip(), request.query.get("cursor")
    before = _entry_id(cursor) if cursor else audit.NEWEST
    entries = await audit.page(
        request.app[keys.DATABASE],
        limit=pages.PER_PAGE + 1,
        before=before,
        subjects=[subject.replace("\0", "")] if subject else None,
    )
    more, entries = len(entries) > pages.PER_PAGE, entries[: pages.PER_PAGE]
    return pages.render(
        request,
        "audit.html",
        section="audit",
        entries=entries,
        q=subject,
        first=not cursor,
        next_cursor=pagination.encode(str(entries[-1].id)) if more else None,
    )


def _entry_id(cursor: str) -> int:
    text = pagination.decode(cursor, 1)[0]
    if not (text.isascii() and text.isdigit() and int(text) <= audit.NEWEST):
        raise InvalidRequest("cursor is not one that a page gave.")
    return int(text)


@pages.page
async def service_types(request: web.Request, session: Session) -> web.StreamResponse:
    counts: dict[str, int] | None
    try:
        counts = await request.app[keys.USER_ADMIN].counts()
    except DependencyUnavailable:
        counts = None
    types = request.app[keys.SERVICE_TYPES]
    return pages.render(request, "service_types.html", section="service-types", types=types, counts=counts)


async def asset(request: web.Request) -> web.StreamResponse:
    return request.app[keys.ASSETS].response(request)


def _operation(method: str, path: str, handler: Any) -> Operation:
    return Operation(method, path, handler, path, {200: Answer("A page")}, listed=False)


OPERATIONS = [
    _operation("GET", assets.PATH, asset),
    _operation("GET", "/admin", overview),
    _operation("GET", "/admin/sign-in", sign_in_views.form),
    _operation("POST", "/admin/sign-in", sign_in_views.sign_in),
    _operation("POST", "/admin/sign-out", sign_in_views.sign_out),
    _operation("GET", "/admin/users", user_views.users),
    _operation("GET", "/admin/users/{user_id}", user_views.user),
    _operation("GET", "/admin/users/{user_id}/block", user_views.confirm_block),
    _operation("POST", "/admin/users/{user_id}/block", user_views.block),
    _operation("POST", "/admin/users/{user_id}/unblock", user_views.unblock),
    _operation("POST", "/admin/users/{user_id}/tier", user_views.set_tier),
    _operation("GET", "/admin/users/{user_id}/delete", user_views.confirm_delete),
    _operation("POST", "/admin/users/{user_id}/delete", user_views.delete),
    _operation("GET", "/admin/devices", device_views.devices),
    _operation("GET", "/admin/devices/{key_id}/revoke", device_views.confirm_revoke),
    _operation("POST", "/admin/devices/{key_id}/revoke", device_views.revoke),
    _operation("GET", "/admin/audit", audit_log),
    _operation("GET", "/admin/service-types", service_types),
]
