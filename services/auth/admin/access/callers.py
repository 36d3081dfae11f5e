"""The caller of a request: the holder of a key in a header, or of a session in a cookie; and its right to changes."""

from __future__ import annotations

from aiohttp import web

from services.auth.admin.access import cookies
from services.auth.admin.access.admin_keys import ADMIN_KEYS, AdminKey
from services.auth.admin.access.sessions import SESSIONS, Session
from services.auth.admin.access.wrong_keys import WRONG_KEYS
from services.auth.audit.refusals import REFUSALS
from services.auth.audit.storage import Actor
from services.auth.errors import Forbidden, Unauthorized
from shared.service.proxies import client_address

#: Header fields that may carry a key. The last two come from the single-process MLPA and its operators' tools; most
#: proxies drop names with underscores unless configured otherwise.
_FIELDS = ("Authorization", "master_key", "mlpa_ui_access_key")
_REALM = 'Bearer realm="mlpa"'


async def by_key(request: web.Request) -> AdminKey:
    """The key in the Authorization header, or in one of its aliases.

    :raises Unauthorized: no key, or a wrong one.
    :raises SlowDown: a wrong key from an address that has sent too many.
    """
    given = next((values for field in _FIELDS if (values := request.headers.getall(field, []))), [])
    if not given:
        raise Unauthorized(headers={"WWW-Authenticate": _REALM})
    scheme, _, secret = given[0].partition(" ")
    key = request.app[ADMIN_KEYS].find(secret.strip()) if scheme.lower() == "bearer" and len(given) == 1 else None
    if key is None:
        await request.app[WRONG_KEYS].count("api", client_address(request))
        raise Unauthorized("The key is wrong.", headers={"WWW-Authenticate": f'{_REALM}, error="invalid_token"'})
    return key


async def by_session(request: web.Request, *, take_flash: bool) -> Session | None:
    """The session of the browser's cookie.

    :raises DependencyUnavailable: Redis has the sessions.
    """
    session_id = cookies.read(request, cookies.SESSION)
    return await request.app[SESSIONS].find(session_id, take_flash=take_flash) if session_id else None


async def by_key_or_session(request: web.Request) -> AdminKey:
    """The key in a header, or of the browser's session.

    :raises Unauthorized: neither, or a wrong key.
    :raises SlowDown: a wrong key from an address that has sent too many.
    :raises DependencyUnavailable: Redis has the sessions.
    """
    if not any(field in request.headers for field in _FIELDS):
        session = await by_session(request, take_flash=False)
        if session is not None:
            return session.key
    return await by_key(request)


def actor(request: web.Request, key: AdminKey) -> Actor:
    return Actor(key.name, client_address(request))


def changing(request: web.Request, key: AdminKey) -> Actor:
    """The holder of a key that permits changes.

    :raises Forbidden: it is a viewer's key. The audit log counts the attempt.
    """
    who = actor(request, key)
    if not key.may_change:
        subject = next(iter(request.match_info.values()), "console")
        resource = request.match_info.route.resource
        tried = f"{request.method} {resource.canonical if resource else request.path}"
        request.app[REFUSALS].add(who, "forbidden", subject, tried)
        raise Forbidden
    return who
