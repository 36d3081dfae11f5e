"""The pages about users."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from services.auth import keys
from services.auth.admin.access.sessions import Session
from services.auth.admin.console import pages
from services.auth.admin.console.filters import path
from services.auth.admin.console.support import refusals
from services.auth.audit import storage as audit
from services.auth.users.operators import User, UserAdmin
from services.auth.users.operators_storage import Sort

_LEDGER_ROWS = 25
_AUDIT_ROWS = 10


@pages.page
async def users(request: web.Request, session: Session) -> web.StreamResponse:
    q = request.query.get("q", "").strip()
    sort: Sort = "created" if request.query.get("sort") == "created" and not q else "id"
    descending = request.query.get("order") == "desc"
    found = await _admin(request).page(
        q=q, cursor=request.query.get("cursor"), limit=pages.PER_PAGE, sort=sort, descending=descending
    )
    return pages.render(
        request, "users.html", section="users", page=found, q=q, sort=sort, order="desc" if descending else "asc"
    )


@pages.page
async def user(request: web.Request, session: Session) -> web.StreamResponse:
    found = await _user(request)
    row, admin, database = found.row, _admin(request), request.app[keys.DATABASE]
    spending = request.app[keys.SPENDING]
    now = request.app[keys.USAGE].now()
    ledger, others, device, entries, rates = await asyncio.gather(
        admin.ledger(row.user_id, limit=_LEDGER_ROWS, cursor=request.query.get("cursor")),
        admin.of_identity(row.identity),
        request.app[keys.DEVICE_ADMIN].find(row.identity),
        audit.page(database, limit=_AUDIT_ROWS, subjects=[row.user_id, row.identity]),
        spending.rates(row.user_id, now.timestamp()),
    )
    tier = spending.row(row.user_id, row.budget_tier)
    return pages.render(
        request,
        "user.html",
        section="users",
        user=found,
        now=now,
        tier=tier,
        tiers=list(request.app[keys.SERVICE_TYPES].rows),
        refusals=refusals(found, tier, rates, now),
        rates=rates,
        ledger=ledger,
        first="cursor" not in request.query,
        others=[other for other in others if other.row.user_id != row.user_id],
        device=device,
        entries=entries,
    )


@pages.page
async def confirm_block(request: web.Request, session: Session) -> web.StreamResponse:
    return await _confirm(request, "block.html")


@pages.page
async def confirm_delete(request: web.Request, session: Session) -> web.StreamResponse:
    return await _confirm(request, "delete.html")


async def _confirm(request: web.Request, template: str) -> web.Response:
    found = await _user(request)
    others = await _admin(request).of_identity(found.row.identity)
    others = [other for other in others if other.row.user_id != found.row.user_id]
    return pages.render(request, template, section="users", user=found, others=others, max_reason=pages.MAX_REASON)


@pages.action
async def block(request: web.Request, session: Session, form: Mapping[str, str]) -> web.StreamResponse:
    user_id = request.match_info["user_id"]
    await _admin(request).block(user_id, pages.actor(request, session.key.name), pages.reason(form))
    return await pages.done(request, session, _page_of(user_id), "Blocked, in all service types of this identity.")


@pages.action
async def unblock(request: web.Request, session: Session, form: Mapping[str, str]) -> web.StreamResponse:
    user_id = request.match_info["user_id"]
    await _admin(request).unblock(user_id, pages.actor(request, session.key.name))
    return await pages.done(request, session, _page_of(user_id), "Unblocked. Requests are admitted again.")


@pages.action
async def set_tier(request: web.Request, session: Session, form: Mapping[str, str]) -> web.StreamResponse:
    user_id, tier = request.match_info["user_id"], form.get("tier", "")
    await _admin(request).set_tier(user_id, pages.actor(request, session.key.name), tier)
    return await pages.done(request, session, _page_of(user_id), f"Budget and rates are now those of {tier}.")


@pages.action
async def delete(request: web.Request, session: Session, form: Mapping[str, str]) -> web.StreamResponse:
    user_id = request.match_info["user_id"]
    await _admin(request).delete(user_id, pages.actor(request, session.key.name))
    return await pages.done(request, session, "/admin/users", f"Deleted {user_id}. Its requests stay in the ledger.")


def _admin(request: web.Request) -> UserAdmin:
    return request.app[keys.USER_ADMIN]


async def _user(request: web.Request) -> User:
    return await _admin(request).get(request.match_info["user_id"])


def _page_of(user_id: str) -> str:
    return f"/admin/users/{path(user_id)}"
