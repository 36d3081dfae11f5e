"""Operations of operators on devices. A revocation is final, since a stolen key remains stolen."""

from __future__ import annotations

from aiohttp import web

from services.auth import pagination
from services.auth.audit import storage as audit
from services.auth.audit.storage import Actor
from services.auth.devices import operators_storage as storage
from services.auth.devices.operators_storage import DeviceRow
from services.auth.pagination import Page
from services.auth.standing import storage as standing
from services.auth.standing.changes import Changes
from shared.errors import NotFound
from shared.stores.postgres import Database


class DeviceAdmin:
    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self._changes = changes

    async def page(self, *, q: str = "", cursor: str | None = None, limit: int) -> Page[DeviceRow]:
        """Devices whose key id starts with ``q``, by key id.

        :raises InvalidRequest: the cursor is not one of this list.
        :raises DependencyUnavailable: a dependency could not be asked.
        """
        place = pagination.place(cursor, 1)
        if "\0" in q:
            return Page([])
        key = place.key[0] if place.key else None
        rows = await storage.page(self._database, q=q, key=key, backwards=place.backwards, limit=limit + 1)
        return pagination.page(place, rows, limit, lambda device: (device.key_id,))

    async def find(self, key_id: str) -> DeviceRow | None:
        """:raises DependencyUnavailable: a dependency could not be asked."""
        return await storage.find(self._database, key_id) if "\0" not in key_id else None

    async def get(self, key_id: str) -> DeviceRow:
        """
        :raises NotFound: it does not exist.
        :raises DependencyUnavailable: a dependency could not be asked.
        """
        device = await self.find(key_id)
        if device is None:
            raise NotFound("There is no such device.")
        return device

    async def revoke(self, key_id: str, actor: Actor, reason: str | None = None) -> None:
        """Refuse a device and its tokens from now on, in all its service types.

        :raises NotFound: it does not exist.
        :raises DependencyUnavailable: it may be in PostgreSQL only; then it is applied to Redis later.
        """
        await self.get(key_id)
        async with self._database.transaction() as transaction:
            device = await storage.lock(transaction, key_id)
            assert device is not None  # devices are never deleted
            await standing.revoke_device(transaction, key_id, reason)
            old = {"revoked": device.revoked_at is not None, "reason": device.revoked_reason}
            new = {"revoked": True, "reason": reason}
            await audit.record(transaction, actor, "device.revoke", key_id, old=old, new=new)
            await self._changes.record(transaction, key_id, "device revoked")
        await self._changes.apply(key_id)


DEVICE_ADMIN = web.AppKey("device_admin", DeviceAdmin)
