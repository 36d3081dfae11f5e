"""The pages of signing in and out."""

from __future__ import annotations

from aiohttp import web

from services.auth.admin.access import callers, cookies, csrf, sign_in
from services.auth.admin.access.sessions import Session
from services.auth.admin.console import pages
from shared.errors import DependencyUnavailable

_SIGN_IN_SECONDS = 3600


async def form(request: web.Request) -> web.StreamResponse:
    try:
        if await callers.by_session(request, take_flash=False) is not None:
            return pages.redirect(sign_in.destination(request))
    except DependencyUnavailable:
        pass  # the form needs no session
    return _form(request)


async def begin(request: web.Request) -> web.StreamResponse:
    fields = await pages.fields(request)
    csrf.check(request, fields.get(csrf.FIELD, ""), cookies.read(request, cookies.SIGN_IN))
    session = await sign_in.begin(request, fields.get("key", ""))
    if session is None:
        response = _form(request, "This is not one of the admin keys.", status=401)
        response.headers["WWW-Authenticate"] = 'Form realm="mlpa"'  # a 401 needs it; no dialog appears
        return response
    response = pages.redirect(sign_in.destination(request))
    cookies.put(request, response, cookies.SESSION, session.id)
    cookies.drop(request, response, cookies.SIGN_IN)
    return response


@pages.page
async def end(request: web.Request, session: Session) -> web.StreamResponse:
    csrf.check(request, (await pages.fields(request)).get(csrf.FIELD, ""), session.csrf)
    response = pages.redirect("/admin/sign-in?out=1")
    await sign_in.end(request, session, response)
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
    cookies.put(request, response, cookies.SIGN_IN, token, max_age=_SIGN_IN_SECONDS)
    return response
