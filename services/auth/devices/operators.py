"""Operations of operators on devices. A revocation is final, since a stolen key remains stolen.

Every method raises ``DependencyUnavailable``; a change may then be in PostgreSQL only, and comes to Redis later. They
raise ``NotFound`` for what does not exist, and ``ForeignCursor``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from aiohttp import web

from services.auth import pagination
from services.auth.audit import storage as audit
from services.auth.audit.storage import Actor
from services.auth.devices import operators_storage as storage
from services.auth.devices.operators_storage import Chosen, DeviceRow
from services.auth.errors import InvalidRequest
from services.auth.pagination import Page
from services.auth.standing import storage as standing
from services.auth.standing.changes import Changes
from shared.errors import NotFound
from shared.stores.postgres import Database

#: Devices that one change blocks.
MOST_BLOCKED = 10_000


@dataclass(frozen=True, slots=True)
class Blocked:
    """The number of chosen devices that were not blocked yet, and of those that are blocked now."""

    matching: int
    blocked: int


class DeviceAdmin:
    def __init__(self, database: Database, changes: Changes, reports: Database) -> None:
        """:param reports: PostgreSQL again, with more patience."""
        self._database, self._reports, self._changes = database, reports, changes

    async def page(
        self, *, q: str = "", cursor: str | None = None, limit: int, chosen: Chosen | None = None
    ) -> Page[DeviceRow]:
        """Devices whose key id starts with ``q``, by key id."""
        place = pagination.place(cursor, 1)
        if "\0" in q:
            return Page([])
        key = place.key[0] if place.key else None
        database = self._reports if chosen is not None and chosen.given() else self._database
        rows = await storage.page(database, q=q, key=key, backwards=place.backwards, limit=limit + 1, chosen=chosen)
        return pagination.page(place, rows, limit, lambda device: (device.key_id,))

    async def find(self, key_id: str) -> DeviceRow | None:
        return await storage.find(self._database, key_id) if "\0" not in key_id else None

    async def get(self, key_id: str) -> DeviceRow:
        device = await self.find(key_id)
        if device is None:
            raise NotFound("There is no such device.")
        return device

    async def revoke(self, key_id: str, actor: Actor, reason: str | None = None) -> None:
        """Refuse a device and its tokens from now on, in all its service types."""
        if "\0" in key_id:
            raise NotFound("There is no such device.")
        async with self._database.transaction() as transaction:
            device = await storage.lock(transaction, key_id)
            if device is None:
                raise NotFound("There is no such device.")
            await standing.revoke_device(transaction, key_id, reason)
            old = {"revoked": device.revoked_at is not None, "reason": device.revoked_reason}
            new = {"revoked": True, "reason": reason}
            await audit.record(transaction, actor, "device.revoke", key_id, old=old, new=new)
            await standing.record(transaction, key_id, "device revoked")
        await self._changes.apply(key_id)

    async def block(self, chosen: Chosen, actor: Actor, reason: str | None = None, *, dry_run: bool) -> Blocked:
        """Block the chosen devices, at most ``MOST_BLOCKED``, with one entry in the audit log.

        Redis learns of them one after another, some hundreds per second.

        :raises InvalidRequest: there is no criterion.
        :raises DatabaseUnavailable: PostgreSQL could not be asked; then all or none are blocked.
        """
        if not (given := chosen.given()):
            raise InvalidRequest("At least one criterion is needed.")
        if dry_run:
            return Blocked(await storage.blockable(self._reports, chosen), 0)
        async with self._reports.transaction() as transaction:
            matching = await storage.blockable(transaction, chosen)
            blocked = await storage.block(transaction, chosen, reason=reason, limit=MOST_BLOCKED)
            meant = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in given.items()}
            new = {"meant": meant, "matching": matching, "blocked": blocked, "reason": reason}
            await audit.record(transaction, actor, "device.block", "devices", new=new)
        return Blocked(matching, blocked)


DEVICE_ADMIN = web.AppKey("device_admin", DeviceAdmin)
