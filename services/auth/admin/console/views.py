"""The pages of the console that only show something, and the list of all its operations."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from services.auth.admin.access.sessions import Session
from services.auth.admin.console import (
    assets,
    cost_views,
    device_views,
    filters,
    pages,
    request_views,
    sign_in_views,
    user_views,
)
from services.auth.admin.console.assets import ASSETS
from services.auth.admin.console.overview import OVERVIEWS
from services.auth.audit.log import AUDIT_LOG
from services.auth.settings import SERVICE_TYPES
from services.auth.users.operators import USER_ADMIN
from shared.errors import DependencyUnavailable
from shared.service.serve import DRAIN
from shared.telemetry.openapi import Answer, Operation


@pages.page
async def overview(request: web.Request, session: Session) -> web.StreamResponse:
    figures = await request.app[OVERVIEWS].read(
        in_days=request.query.get("span") == "30d", draining=request.app[DRAIN].begun
    )
    return pages.render(
        request, "overview.html", section="overview", figures=figures, dollars=filters.usd, numbers=filters.compact
    )


@pages.page
async def audit_log(request: web.Request, session: Session) -> web.StreamResponse:
    subject, cursor = request.query.get("q", "").strip(), request.query.get("cursor")
    found = await request.app[AUDIT_LOG].page(subject=subject, cursor=cursor, limit=pages.PER_PAGE)
    return pages.render(request, "audit.html", section="audit", page=found, q=subject, first=not cursor)


@pages.page
async def service_types(request: web.Request, session: Session) -> web.StreamResponse:
    counts: dict[str, int] | None
    try:
        counts = await request.app[USER_ADMIN].counts()
    except DependencyUnavailable:
        counts = None
    types = request.app[SERVICE_TYPES]
    unenforced = {row.name: datetime.fromtimestamp(row.enforce_until, UTC) for row in types.unenforced(time.time())}
    return pages.render(
        request, "service_types.html", section="service-types", types=types, unenforced=unenforced, counts=counts
    )


async def asset(request: web.Request) -> web.StreamResponse:
    return request.app[ASSETS].response(request)


def _operation(method: str, path: str, handler: Any) -> Operation:
    return Operation(method, path, handler, path, {200: Answer("A page")}, listed=False)


OPERATIONS = [
    _operation("GET", assets.PATH, asset),
    _operation("GET", "/admin", overview),
    _operation("GET", "/admin/sign-in", sign_in_views.form),
    _operation("POST", "/admin/sign-in", sign_in_views.begin),
    _operation("POST", "/admin/sign-out", sign_in_views.end),
    _operation("GET", "/admin/users", user_views.users),
    _operation("GET", "/admin/users/{user_id}", user_views.user),
    _operation("GET", "/admin/users/{user_id}/block", user_views.confirm_block),
    _operation("POST", "/admin/users/{user_id}/block", user_views.block),
    _operation("POST", "/admin/users/{user_id}/unblock", user_views.unblock),
    _operation("POST", "/admin/users/{user_id}/tier", user_views.set_tier),
    _operation("POST", "/admin/users/{user_id}/exception", user_views.set_exception),
    _operation("POST", "/admin/users/{user_id}/exception/end", user_views.end_exception),
    _operation("GET", "/admin/users/{user_id}/erase", user_views.confirm_erase),
    _operation("POST", "/admin/users/{user_id}/erase", user_views.erase),
    _operation("GET", "/admin/requests", request_views.requests),
    _operation("GET", "/admin/find", request_views.find),
    _operation("GET", "/admin/costs", cost_views.costs),
    _operation("GET", "/admin/models", cost_views.models),
    _operation("GET", "/admin/devices", device_views.devices),
    _operation("GET", "/admin/devices/{key_id}/revoke", device_views.confirm_revoke),
    _operation("POST", "/admin/devices/{key_id}/revoke", device_views.revoke),
    _operation("GET", "/admin/audit", audit_log),
    _operation("GET", "/admin/service-types", service_types),
]
