"""Signing in to the console with an admin key, and out again."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from services.auth import keys
from services.auth.admin.access import csrf
from services.auth.admin.access.sessions import Session
from services.auth.admin.console import pages
from services.auth.audit import storage as audit
from shared.errors import DependencyUnavailable
from shared.proxies import client_address

#: Printable ASCII but the backslash, which browsers take for a slash.
_NEXT = re.compile(r"/admin([/?][!-\[\]-~]*)?")
_SUBJECT = "console"
_SIGN_IN_SECONDS = 3600


async def form(request: web.Request) -> web.StreamResponse:
    try:
        if await pages.find_session(request, take_flash=False) is not None:
            return pages.redirect(_next(request))
    except DependencyUnavailable:
        pass  # the form can be shown all the same
    return _form(request)


async def sign_in(request: web.Request) -> web.StreamResponse:
    source = client_address(request)
    fields = await pages.fields(request)
    csrf.check(request, fields.get(csrf.FIELD, ""), csrf.cookie(request, csrf.SIGN_IN_COOKIE))
    key = request.app[keys.ADMIN_KEYS].find(fields.get("key", ""))
    if key is None:
        await request.app[keys.WRONG_KEYS].count("console", source)
        response = _form(request, "This is not one of the admin keys.", status=401)
        response.headers["WWW-Authenticate"] = 'Form realm="mlpa"'  # a 401 needs one; no browser asks because of it
        return response
    database = request.app[keys.DATABASE]
    await audit.record(database, audit.Actor(key.name, source), "sign_in", _SUBJECT, new={"role": key.role})
    session = await request.app[keys.SESSIONS].begin(key)
    response = pages.redirect(_next(request))
    _set_cookie(request, response, pages.COOKIE, session.id)
    _drop_cookie(request, response, csrf.SIGN_IN_COOKIE)
    return response


@pages.page
async def sign_out(request: web.Request, session: Session) -> web.StreamResponse:
    csrf.check(request, (await pages.fields(request)).get(csrf.FIELD, ""), session.csrf)
    await request.app[keys.SESSIONS].end(session.id)
    response = pages.redirect("/admin/sign-in?out=1")
    _drop_cookie(request, response, pages.COOKIE)
    await audit.record(request.app[keys.DATABASE], pages.actor(request, session.key.name), "sign_out", _SUBJECT)
    return response


def _form(request: web.Request, error: str | None = None, *, status: int = 200) -> web.Response:
    token = csrf.sign_in_token(request)
    response = pages.render(
        request,
        "sign_in.html",
        status=status,
        error=error,
        signed_out="out" in request.query,
        token=token,
        action=request.rel_url.raw_path_qs if "next" in request.query else "/admin/sign-in",
    )
    _set_cookie(request, response, csrf.SIGN_IN_COOKIE, token, max_age=_SIGN_IN_SECONDS)
    return response


def _next(request: web.Request) -> str:
    """Where to go after signing in: only ever into the console."""
    asked = request.query.get("next", "")
    return asked if _NEXT.fullmatch(asked) and not asked.startswith("/admin/sign-") else "/admin"


def _set_cookie(
    request: web.Request, response: web.Response, name: str, value: str, max_age: int | None = None
) -> None:
    response.set_cookie(csrf.cookie_name(request, name), value, max_age=max_age, **_attributes(request))


def _drop_cookie(request: web.Request, response: web.Response, name: str) -> None:
    response.del_cookie(csrf.cookie_name(request, name), **_attributes(request))


def _attributes(request: web.Request) -> Any:
    # a name that begins with __Host- needs the path /, and no domain
    return {"path": "/", "httponly": True, "secure": csrf.secure(request), "samesite": "Strict"}
