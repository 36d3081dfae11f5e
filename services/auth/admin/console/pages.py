"""Shared parts of the console's pages: sign-in, rendering, forms, errors."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp_jinja2
import jinja2
from aiohttp import web

from services.auth import errors
from services.auth.admin.access import callers, csrf
from services.auth.admin.access.sessions import SESSIONS, Flash, Session
from services.auth.admin.console.assets import ASSETS
from services.auth.admin.console.filters import FILTERS
from services.auth.audit.storage import Actor
from services.auth.errors import InvalidRequest
from services.auth.forms import read_form
from services.auth.standing.changes import NotInRedisYet
from shared.errors import DependencyUnavailable, ServiceError
from shared.service.ops import VERSION
from shared.service.web import REQUEST_ID

SESSION = web.RequestKey("session", Session)
PER_PAGE = 25
MAX_REASON = 500

#: Stricter than that of other pages: the console has no scripts at all.
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Change:
    """A change that a form asks for, with its session."""

    actor: Actor
    form: Mapping[str, str]

    @property
    def reason(self) -> str | None:
        """The reason that the form gives, on one line.

        :raises InvalidRequest: too long.
        """
        text = " ".join("".join(char if char.isprintable() else " " for char in self.form.get("reason", "")).split())
        if len(text) > MAX_REASON:
            raise InvalidRequest(f"A reason can have up to {MAX_REASON} characters.")
        return text or None


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PageHandler = Callable[[web.Request, Session], Awaitable[web.StreamResponse]]


def install(app: web.Application) -> None:
    app[aiohttp_jinja2.APP_KEY] = _environment()


@cache
def _environment() -> jinja2.Environment:
    """Templates that escape values and fail on undefined names; all are compiled here rather than at first use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    for name in environment.list_templates(extensions=["html"]):
        environment.get_template(name)
    return environment


def page(handler: PageHandler) -> Handler:
    """A page that requires a session; without one the browser is sent to the sign-in page."""

    @wraps(handler)
    async def signed_in(request: web.Request) -> web.StreamResponse:
        session = await callers.by_session(request, take_flash=request.method == "GET")
        if session is None:
            there = "?" + urlencode({"next": request.rel_url.raw_path_qs}) if request.method == "GET" else ""
            return redirect(f"/admin/sign-in{there}")
        request[SESSION] = session
        return await handler(request, session)

    return signed_in


def action(handler: Callable[[web.Request, Session, Change], Awaitable[web.StreamResponse]]) -> Handler:
    """The handler of a form that changes something. It gets the form's fields and the caller."""

    async def checked(request: web.Request, session: Session) -> web.StreamResponse:
        form = await fields(request)
        csrf.check(request, form.get(csrf.FIELD, ""), session.csrf)
        return await handler(request, session, Change(callers.changing(request, session.key), form))

    return page(wraps(handler)(checked))


async def fields(request: web.Request) -> dict[str, str]:
    """The fields of a form that are not empty.

    :raises InvalidRequest: it is malformed.
    """
    return {name: values[0].strip() for name, values in (await read_form(request)).items()}


def redirect(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})


async def done(request: web.Request, session: Session, path: str, text: str) -> web.Response:
    """Redirect to the page that shows a change (Post/Redirect/Get), with a message.

    Without Redis the message is lost; the change has happened nevertheless.
    """
    with contextlib.suppress(DependencyUnavailable):
        await request.app[SESSIONS].say(session, Flash(text))
    return redirect(path)


def render(
    request: web.Request, template: str, *, status: int = 200, section: str = "", **context: Any
) -> web.Response:
    """A page. ``section`` is the part of the navigation that it belongs to."""
    session = request.get(SESSION)
    everything = {
        "session": session,
        "csrf": session.csrf if session else "",
        "may_change": session is not None and session.key.may_change,
        "flash": session.flash if session else None,
        "section": section,
        "asset": request.app[ASSETS].url,
        "version": VERSION,
        **context,
    }
    response = aiohttp_jinja2.render_template(template, request, everything, status=status)
    response.headers["Content-Security-Policy"] = POLICY
    return response


_TITLES = {
    400: "The request can't be read",
    401: "Sign in first",
    403: "Not allowed",
    404: "Nothing here",
    405: "This page does not accept that",
    413: "The request is too large",
    422: "No such service type",
    429: "Too many attempts",
    503: "Can't be done right now",
}


def render_error(request: web.Request | None, error: ServiceError) -> web.Response:
    """An error as a page for a browser in the console, else in auth's envelope (None: no request could be read)."""
    if request is None:
        return errors.render(None, error)
    html = "text/html" in request.headers.get("Accept", "")
    if not (html and request.path.startswith("/admin") and ASSETS in request.app):
        return errors.render(request, error)
    response = render(
        request,
        "error.html",
        status=error.status,
        title=_TITLES.get(error.status, "Something went wrong"),
        message=error.message,
        dependency=error.dependency if isinstance(error, DependencyUnavailable) else None,
        change=request.method == "POST",
        recorded=isinstance(error, NotInRedisYet),
        request_id=request.get(REQUEST_ID, ""),
    )
    response.headers.update(error.headers)
    return response
