"""The API of the audit log: /audit."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from services.auth.admin.access import callers
from services.auth.admin.api.models import body_of
from services.auth.admin.api.requests import COMMON, CURSOR, LIMIT, MALFORMED, answer, limit, one_each, operation
from services.auth.audit.log import AUDIT_LOG
from shared.telemetry.openapi import Answer, Parameter


class EntryBody(msgspec.Struct, frozen=True):
    """One change, sign-in, or sum of refusals. ``actor`` is the name of a key, ``source`` the client's address."""

    id: int
    at: str
    actor: str
    action: str
    subject: str
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    source: str | None


class AuditBody(msgspec.Struct, frozen=True):
    entries: list[EntryBody]
    next_cursor: str | None


async def list_entries(request: web.Request) -> web.Response:
    await callers.by_key(request)
    query = one_each(request, ("limit", "cursor", "subject"))
    page = await request.app[AUDIT_LOG].page(
        subject=query.get("subject", ""), cursor=query.get("cursor"), limit=limit(query)
    )
    return answer(AuditBody([body_of(EntryBody, entry) for entry in page.rows], page.next_cursor))


OPERATIONS = [
    operation(
        *("Audit log", "GET /audit", list_entries, "What was done, and by whom"),
        {200: Answer("Entries, newest first", AuditBody), **COMMON, **MALFORMED},
        *(LIMIT, CURSOR, Parameter("subject", "The whole id of a user or device, or another subject.")),
    )
]
