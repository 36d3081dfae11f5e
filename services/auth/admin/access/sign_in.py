"""Signing in to the console with an admin key, and out again."""

from __future__ import annotations

import re

from aiohttp import web

from services.auth.admin.access import callers, cookies
from services.auth.admin.access.admin_keys import ADMIN_KEYS
from services.auth.admin.access.sessions import SESSIONS, Session
from services.auth.admin.access.wrong_keys import WRONG_KEYS
from services.auth.audit.log import AUDIT_LOG
from shared.service.proxies import client_address

#: Printable ASCII but the backslash, which browsers take for a slash.
_NEXT = re.compile(r"/admin([/?][!-\[\]-~]*)?")
_SUBJECT = "console"


async def begin(request: web.Request, secret: str) -> Session | None:
    """A new session for the holder of a key; None for a wrong key.

    :raises SlowDown: a wrong key from an address that has sent too many.
    :raises DependencyUnavailable: a dependency could not be asked.
    """
    key = request.app[ADMIN_KEYS].find(secret)
    if key is None:
        await request.app[WRONG_KEYS].count("console", client_address(request))
        return None
    who = callers.actor(request, key)
    await request.app[AUDIT_LOG].record(who, "sign_in", _SUBJECT, new={"role": key.role})
    return await request.app[SESSIONS].begin(key)


async def end(request: web.Request, session: Session, response: web.Response) -> None:
    """End a session, and have the browser forget it.

    :raises DependencyUnavailable: a dependency could not be asked.
    """
    await request.app[SESSIONS].end(session.id)
    cookies.drop(request, response, cookies.SESSION)
    await request.app[AUDIT_LOG].record(callers.actor(request, session.key), "sign_out", _SUBJECT)


def destination(request: web.Request) -> str:
    """The page to show after the sign-in, which is always one of the console."""
    asked = request.query.get("next", "")
    return asked if _NEXT.fullmatch(asked) and not asked.startswith("/admin/sign-") else "/admin"
