"""Operations of operators on users. When a method returns, its change is in PostgreSQL and in Redis.

Every method raises ``DependencyUnavailable``; a change may then be in PostgreSQL only, and comes to Redis later. They
raise ``NotFound`` for what does not exist, and ``ForeignCursor``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from services.auth import pagination
from services.auth.audit import storage as audit
from services.auth.audit.storage import Actor
from services.auth.errors import UnknownTier
from services.auth.pagination import Page
from services.auth.standing import storage as standing
from services.auth.standing.changes import Changes
from services.auth.users import operators_storage as storage, pools
from services.auth.users.operators_storage import LedgerRow, Sort, UserRow, Which
from services.auth.users.spending import Spending, Spent
from shared.domain.money import nano_to_usd
from shared.domain.service_types import ServiceTypes
from shared.errors import DependencyUnavailable, NotFound
from shared.state.packed import Excepted
from shared.stores.postgres import Database, Transaction

#: How long a change may take in all, in seconds.
_PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class User:
    row: UserRow
    spent: Spent


class UserAdmin:
    def __init__(
        self,
        database: Database,
        spending: Spending,
        changes: Changes,
        service_types: ServiceTypes,
        *,
        on_tier: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """:param on_tier: called with the id of each user whose tier or exception has changed."""
        self._database, self._spending, self._changes = database, spending, changes
        self._rows = service_types.by_name
        self._on_tier, self._clock = on_tier, clock

    async def page(
        self,
        *,
        q: str = "",
        cursor: str | None = None,
        limit: int,
        sort: Sort = "id",
        descending: bool = False,
        which: Which = "all",
        tier: str = "",
    ) -> tuple[Page[User], int]:
        """Users of a list whose id starts with ``q``, and about how many there are in all such ids. A search, and each
        list but that of all users, is sorted by id.
        """
        sort = "id" if q or which != "all" else sort
        place = pagination.place(cursor, 2)
        after = (place.key[0], pagination.moment(place.key[1]).isoformat()) if place.key else None
        if "\0" in q + tier:
            return Page([]), 0
        rows, total = await asyncio.gather(
            storage.page(
                self._database,
                q=q,
                sort=sort,
                descending=descending != place.backwards,
                after=after,
                limit=limit + 1,
                which=which,
                tier=tier,
            ),
            storage.estimate(self._database, q),
        )
        found = pagination.page(
            place,
            rows,
            limit,
            lambda row: (row.user_id, (row.last_seen_at if sort == "seen" else row.created_at).isoformat()),
        )
        return Page(await self._with_spending(found.rows), found.next_cursor, found.previous_cursor), total

    async def get(self, user_id: str) -> User:
        return (await self._with_spending([await self._row(user_id)]))[0]

    async def some(self, user_ids: Sequence[str]) -> list[User]:
        """Those of these users that exist, by id."""
        return await self._with_spending(await storage.by_ids(self._database, user_ids))

    async def of_identity(self, identity: str) -> list[User]:
        """The users of one identity, in its service types."""
        return await self._with_spending(await storage.of_identity(self._database, identity))

    async def counts(self) -> dict[str, int]:
        """Users by service type."""
        return dict.fromkeys(self._rows, 0) | await storage.counts(self._database)

    async def pools(self) -> list[tuple[str, int, int]]:
        """Name, users and capacity of each pool."""
        return await pools.status(self._database, self._rows.values())

    async def ledger(self, user_id: str, *, limit: int, cursor: str | None = None) -> Page[LedgerRow]:
        """Requests, newest first, which pages follow in one direction alone; a deleted user's too.

        :raises NotFound: no such user, and none in the ledger.
        """
        before = None
        if cursor:
            row_id, at = pagination.decode(cursor, 2)
            before = (row_id, pagination.moment(at).isoformat())
        if "\0" in user_id:
            raise NotFound
        rows = await storage.ledger(self._database, user_id, limit=limit + 1, before=before)
        if not rows and before is None:
            await self._row(user_id)
        more, rows = len(rows) > limit, rows[:limit]
        return Page(rows, pagination.encode(rows[-1].id, rows[-1].admitted_at.isoformat()) if more else None)

    async def block(self, user_id: str, actor: Actor, reason: str | None = None) -> None:
        """Block the identity in all its service types."""
        async with self._change(user_id, "blocked") as (transaction, row):
            await standing.block(transaction, row.identity, reason)
            new = {"blocked": True, "reason": reason}
            await audit.record(transaction, actor, "user.block", user_id, old=_standing(row), new=new)

    async def unblock(self, user_id: str, actor: Actor) -> None:
        """Admit the identity again."""
        async with self._change(user_id, "unblocked") as (transaction, row):
            await standing.unblock(transaction, row.identity)
            new = {"blocked": False, "reason": None}
            await audit.record(transaction, actor, "user.unblock", user_id, old=_standing(row), new=new)

    async def unblock_identity(self, identity: str, actor: Actor) -> bool:
        """Admit an identity that has no user, such as a device that was blocked before it came for a token.

        :returns: False if it is not blocked.
        """
        if "\0" in identity:
            return False
        async with self._database.transaction() as transaction:
            if not await standing.unblock(transaction, identity):
                return False
            await audit.record(transaction, actor, "user.unblock", identity, new={"blocked": False, "reason": None})
            await standing.record(transaction, identity, "unblocked")
        await self._changes.apply(identity)
        return True

    async def set_tier(self, user_id: str, actor: Actor, tier: str) -> None:
        """Give a user the money and rates of another service type's row.

        :raises UnknownTier: there is no such row.
        """
        if tier not in self._rows:
            raise UnknownTier
        async with self._change(user_id, "tier") as (transaction, row):
            await standing.set_tier(transaction, user_id, tier)
            old, new = {"budget_tier": row.budget_tier}, {"budget_tier": tier}
            await audit.record(transaction, actor, "user.tier", user_id, old=old, new=new)

    async def set_exception(self, user_id: str, actor: Actor, given: Excepted, reason: str | None = None) -> None:
        """Let a user spend more, or without rates, until a moment; instead of the exception that it has."""
        async with self._change(user_id, "exception") as (transaction, row):
            await standing.set_exception(transaction, user_id, given, reason)
            new = _exception(given, reason)
            old = _exception(row.exception, row.exception_reason)
            await audit.record(transaction, actor, "user.exception", user_id, old=old, new=new)

    async def end_exception(self, user_id: str, actor: Actor) -> None:
        """End a user's exception before its time; nothing if there is none."""
        async with self._change(user_id, "exception") as (transaction, row):
            await standing.end_exception(transaction, user_id)
            old = _exception(row.exception, row.exception_reason)
            await audit.record(transaction, actor, "user.exception", user_id, old=old, new=_exception(None, None))

    @asynccontextmanager
    async def _change(self, user_id: str, kind: str) -> AsyncIterator[tuple[Transaction, UserRow]]:
        """Run a change in a transaction that locks the identity's users, then apply it to Redis."""
        try:
            async with asyncio.timeout(_PATIENCE):
                identity = (await self._row(user_id)).identity
                async with self._database.transaction() as transaction:
                    row = await storage.lock(transaction, user_id, identity)
                    if row is None:
                        raise NotFound
                    yield transaction, row
                    await standing.record(transaction, identity, kind)
                await self._changes.apply(identity)
                if self._on_tier is not None and kind in ("tier", "exception"):
                    self._on_tier(user_id)
        except TimeoutError as error:  # a committed change reaches Redis later
            raise DependencyUnavailable("postgres") from error

    async def _row(self, user_id: str) -> UserRow:
        rows = await storage.by_ids(self._database, [user_id]) if "\0" not in user_id else []
        if not rows:
            raise NotFound("There is no such user.")
        return rows[0]

    async def _with_spending(self, rows: list[UserRow]) -> list[User]:
        spent = await self._spending.of(rows, self._clock())
        return [User(row, spent[row.user_id]) for row in rows]


USER_ADMIN = web.AppKey("user_admin", UserAdmin)


def _standing(row: UserRow) -> dict[str, Any]:
    return {"blocked": row.blocked_at is not None, "reason": row.blocked_reason}


def _exception(given: Excepted | None, reason: str | None) -> dict[str, Any]:
    until = f"{datetime.fromtimestamp(given.until, UTC):%Y-%m-%dT%H:%M:%SZ}" if given else None
    return {
        "until": until,
        "extra_budget_usd": nano_to_usd(given.extra_nano) if given else None,
        "without_rates": given.without_rates if given else None,
        "reason": reason,
    }
