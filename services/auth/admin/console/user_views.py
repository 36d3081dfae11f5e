"""The pages about users."""

from __future__ import annotations

import asyncio
from typing import get_args

from aiohttp import web

from services.auth.admin.access.sessions import Session
from services.auth.admin.console import pages
from services.auth.admin.console.filters import path
from services.auth.admin.console.support import refusals
from services.auth.audit.log import AUDIT_LOG
from services.auth.devices.operators import DEVICE_ADMIN
from services.auth.erasure.services import ERASURES
from services.auth.errors import InvalidRequest
from services.auth.exchange.credentials import KINDS
from services.auth.pagination import Page
from services.auth.settings import SERVICE_TYPES
from services.auth.usage.requests import REQUESTS
from services.auth.usage.services import USAGE
from services.auth.users.exceptions import excepted
from services.auth.users.operators import USER_ADMIN, User, UserAdmin
from services.auth.users.operators_storage import Sort, Which
from services.auth.users.spending import SPENDING
from shared.domain.identity import Credential, identity_of

_LEDGER_ROWS = 25
#: Users in the list that has one page.
_TOP = 100
_LISTS: dict[str, Which] = {name: name for name in get_args(Which)}
_SORTS: dict[str, Sort] = {name: name for name in get_args(Sort)}
#: Lists of all users: their order, and whether it is descending. On a phone there are no headings to sort by.
_ORDERS: dict[str, tuple[Sort, bool]] = {"newest": ("created", True), "seen": ("seen", True), "unseen": ("seen", False)}
_AUDIT_ROWS, _REFUSED_ROWS = 10, 10


@pages.page
async def users(request: web.Request, session: Session) -> web.StreamResponse:
    q = request.query.get("q", "").strip()
    listed, _, tier = request.query.get("list", "").partition(":")
    sort = _SORTS.get(request.query.get("sort", ""), "id") if not (q or listed) else "id"
    descending = request.query.get("order") == "desc"
    if listed in _ORDERS and not q:
        sort, descending = _ORDERS[listed]
    as_of, total = None, 0
    if listed == "spend":
        near = await request.app[USAGE].near_limit()
        found, as_of = Page(near.spenders[:_TOP] if near else []), near.as_of if near else None
    else:
        found, total = await _admin(request).page(
            q=q,
            cursor=request.query.get("cursor"),
            limit=pages.PER_PAGE,
            sort=sort,
            descending=descending,
            which=_LISTS.get(listed, "all"),
            tier=tier,
        )
    return pages.render(
        request,
        "users.html",
        section="users",
        page=found,
        total=total,
        kind_of=_kind_of,
        kinds=list({kind.words.identity: kind.words for kind in KINDS}.values()),
        q=q,
        listed=listed,
        whole=request.query.get("list", ""),
        tiers=list(request.app[SERVICE_TYPES].by_name),
        as_of=as_of,
        sort=sort,
        order="desc" if descending else "asc",
    )


@pages.page
async def user(request: web.Request, session: Session) -> web.StreamResponse:
    found = await _user(request)
    row, admin = found.row, _admin(request)
    spending = request.app[SPENDING]
    now = request.app[USAGE].now()
    ledger, others, device, entries, refused = await asyncio.gather(
        admin.ledger(row.user_id, limit=_LEDGER_ROWS, cursor=request.query.get("cursor")),
        admin.of_identity(row.identity),
        request.app[DEVICE_ADMIN].find(row.identity),
        request.app[AUDIT_LOG].about([row.user_id, row.identity], limit=_AUDIT_ROWS),
        request.app[REQUESTS].refused(row.user_id, limit=_REFUSED_ROWS),
    )
    # as cheap as the cheapest of the requests shown: a remainder too small for that is too small for any of them
    least = min((one.cost_nano for one in ledger.rows if one.cost_nano > 0), default=1)
    outlook = await spending.outlook(row, found.spent, least=least)
    tier = spending.row(row.user_id, row.budget_tier)
    return pages.render(
        request,
        "user.html",
        section="users",
        user=found,
        now=now,
        tier=tier,
        tiers=list(request.app[SERVICE_TYPES].by_name),
        refusals=refusals(found, request.app[SERVICE_TYPES].by_name.get(row.service_type), tier, outlook, least),
        outlook=outlook,
        ledger=ledger,
        refused=refused,
        search_tools={one.search_tool for one in request.app[SERVICE_TYPES].by_name.values()},
        first="cursor" not in request.query,
        others=[other for other in others if other.row.user_id != row.user_id],
        device=device,
        entries=entries,
        sign_in=next((kind.words.sign_in for kind in KINDS if kind.kind is Credential.of(row.identity)), None),
    )


def _kind_of(identity: str) -> str | None:
    """The kind of an identity: "FxA uid"."""
    return next((kind.words.identity for kind in KINDS if kind.kind is Credential.of(identity)), None)


def _confirmation(template: str) -> pages.Handler:
    @pages.page
    async def confirm(request: web.Request, session: Session) -> web.StreamResponse:
        found = await _user(request)
        others = await _admin(request).of_identity(found.row.identity)
        others = [other for other in others if other.row.user_id != found.row.user_id]
        return pages.render(request, template, section="users", user=found, others=others, max_reason=pages.MAX_REASON)

    return confirm


confirm_block, confirm_erase = map(_confirmation, ("block.html", "erase.html"))


@pages.action
async def block(request: web.Request, session: Session, change: pages.Change) -> web.StreamResponse:
    user_id = request.match_info["user_id"]
    await _admin(request).block(user_id, change.actor, change.reason)
    return await pages.done(request, session, _page_of(user_id), "Blocked, in all service types of this identity.")


@pages.action
async def unblock(request: web.Request, session: Session, change: pages.Change) -> web.StreamResponse:
    user_id = request.match_info["user_id"]
    await _admin(request).unblock(user_id, change.actor)
    return await pages.done(request, session, _page_of(user_id), "Unblocked. Requests are admitted again.")


@pages.action
async def set_tier(request: web.Request, session: Session, change: pages.Change) -> web.StreamResponse:
    user_id, tier = request.match_info["user_id"], change.form.get("tier", "")
    await _admin(request).set_tier(user_id, change.actor, tier)
    return await pages.done(request, session, _page_of(user_id), f"Budget and rates are now those of {tier}.")


@pages.action
async def set_exception(request: web.Request, session: Session, change: pages.Change) -> web.StreamResponse:
    user_id, form = request.match_info["user_id"], change.form
    hours = form.get("hours", "")
    if not (hours.isascii() and hours.isdigit() and len(hours) < 4):
        raise InvalidRequest("An exception lasts a whole number of hours.")
    until = request.app[USAGE].now().timestamp() + int(hours) * 3600
    given = excepted(until, form.get("extra", "").strip() or "0", without_rates="without_rates" in form)
    await _admin(request).set_exception(user_id, change.actor, given, change.reason)
    return await pages.done(request, session, _page_of(user_id), f"The exception holds for {hours} hours.")


@pages.action
async def end_exception(request: web.Request, session: Session, change: pages.Change) -> web.StreamResponse:
    user_id = request.match_info["user_id"]
    await _admin(request).end_exception(user_id, change.actor)
    return await pages.done(request, session, _page_of(user_id), "The exception has ended.")


@pages.action
async def erase(request: web.Request, session: Session, change: pages.Change) -> web.StreamResponse:
    user_id = request.match_info["user_id"]
    await request.app[ERASURES].erase(identity_of(user_id), change.actor)
    return await pages.done(
        request, session, "/admin/users", "Erased. Its requests stay in the ledger, under a digest."
    )


def _admin(request: web.Request) -> UserAdmin:
    return request.app[USER_ADMIN]


async def _user(request: web.Request) -> User:
    return await _admin(request).get(request.match_info["user_id"])


def _page_of(user_id: str) -> str:
    return f"/admin/users/{path(user_id)}"
