"""The pages about devices."""

from __future__ import annotations

from aiohttp import web

from services.auth.admin.access.sessions import Session
from services.auth.admin.console import pages
from services.auth.devices.operators import DEVICE_ADMIN
from services.auth.users.operators import USER_ADMIN


@pages.page
async def devices(request: web.Request, session: Session) -> web.StreamResponse:
    q = request.query.get("q", "").strip()
    found = await request.app[DEVICE_ADMIN].page(q=q, cursor=request.query.get("cursor"), limit=pages.PER_PAGE)
    return pages.render(request, "devices.html", section="devices", page=found, q=q)


@pages.page
async def confirm_revoke(request: web.Request, session: Session) -> web.StreamResponse:
    key_id = request.match_info["key_id"]
    device = await request.app[DEVICE_ADMIN].get(key_id)
    users = await request.app[USER_ADMIN].of_identity(key_id)
    return pages.render(
        request, "revoke.html", section="devices", device=device, users=users, max_reason=pages.MAX_REASON
    )


@pages.action
async def revoke(request: web.Request, session: Session, change: pages.Change) -> web.StreamResponse:
    key_id = request.match_info["key_id"]
    await request.app[DEVICE_ADMIN].revoke(key_id, change.actor, change.reason)
    return await pages.done(request, session, "/admin/devices", "Revoked, in all service types of this device.")
