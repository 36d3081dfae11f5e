"""The audit log as the console reads and writes it; a change writes its entry in its own transaction (``storage``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from services.auth import pagination
from services.auth.audit import storage
from services.auth.audit.storage import Actor, Entry
from services.auth.pagination import ForeignCursor, Page
from shared.stores.postgres import Database


class AuditLog:
    """The audit log. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, actor: Actor, action: str, subject: str, *, new: Mapping[str, Any] | None = None) -> None:
        """Write an entry about an event that changes nothing in the database."""
        await storage.record(self._database, actor, action, subject, new=new)

    async def about(self, subjects: list[str], *, limit: int) -> list[Entry]:
        """The newest entries about any of some subjects."""
        return await storage.page(self._database, limit=limit, subjects=subjects)

    async def page(self, *, subject: str = "", cursor: str | None = None, limit: int) -> Page[Entry]:
        """Entries, newest first; only those about a subject, if one is given.

        :raises ForeignCursor: the cursor is not one of this list.
        """
        place = pagination.place(cursor, 1)
        edge = _entry_id(place.key[0]) if place.key else storage.MOST_ID
        subjects = [subject.replace("\0", "")] if subject else None
        found = await storage.page(self._database, limit=limit + 1, edge=edge, newer=place.backwards, subjects=subjects)
        return pagination.page(place, found, limit, lambda entry: (str(entry.id),))


AUDIT_LOG = web.AppKey("audit_log", AuditLog)


def _entry_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= storage.MOST_ID):
        raise ForeignCursor
    return int(text)
