"""The console's cookies, named ``__Host-...`` so that no other host of the same site can set them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from services.auth.settings import SETTINGS

SESSION = "mlpa_admin"
SIGN_IN = "mlpa_sign_in"


def read(request: web.Request, cookie: str) -> str:
    """The cookie's value; empty when the browser sent none."""
    return request.cookies.get(name(request, cookie), "")


def put(request: web.Request, response: web.Response, cookie: str, value: str, max_age: int | None = None) -> None:
    """Set a cookie, for ``max_age`` seconds or else until the browser closes."""
    response.set_cookie(name(request, cookie), value, max_age=max_age, **_attributes(request))


def drop(request: web.Request, response: web.Response, cookie: str) -> None:
    response.del_cookie(name(request, cookie), **_attributes(request))


def name(request: web.Request, cookie: str) -> str:
    """The name that the browser knows. Browsers take the prefix only with ``Secure``."""
    return f"__Host-{cookie}" if _secure(request) else cookie


def _secure(request: web.Request) -> bool:
    """Whether cookies are sent over TLS only; development has no TLS."""
    return not request.app[SETTINGS].mlpa_debug


def _attributes(request: web.Request) -> Any:
    # a name that begins with __Host- needs the path /, and no domain
    return {"path": "/", "httponly": True, "secure": _secure(request), "samesite": "Strict"}
