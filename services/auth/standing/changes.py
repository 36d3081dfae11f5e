"""Decisions that PostgreSQL took and Redis must know: applied at once, or as soon as Redis is back.

A change and its row in ``redis_changes`` are written in one transaction. Applying it reads the truth of the identity
again and writes that, under an advisory lock, so that the order in which changes are applied doesn't matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping

from sqlalchemy.dialects.postgresql import JSONB

from services.auth.users import known, storage
from shared import background, budget_state, logs
from shared.errors import DependencyUnavailable
from shared.identity import is_user
from shared.metrics import Registry
from shared.postgres import Database, Query, Row, Transaction
from shared.redis import Client, RedisError

#: How often revocations of tokens that have expired are cleared away, in seconds.
_CLEAR_EVERY = 300.0

_RECORD = Query.text(
    "insert into redis_changes (identity, kind, payload) values (:identity, :kind, :payload) returning id",
    payload=JSONB(),
)
_LOCK = Query.text("select pg_advisory_xact_lock(hashtextextended(:identity, 0)) is null as locked")
_PENDING = Query.text("select identity, min(id) as first from redis_changes group by identity order by 2 limit 100")
_TAKEN = Query.text(
    "select coalesce(max(id), 0) as id, array_remove(array_agg(payload->>'deleted'), null) as deleted "
    "from redis_changes where identity = :identity"
)
_DONE = Query.text("delete from redis_changes where identity = :identity and id <= :id")
_COUNT = Query.text("select count(*) as pending from redis_changes")
_WAITING = Query.text("select exists(select 1 from redis_changes where identity = :identity) as waiting")
_CLEAR = Query.text("delete from revocations where expires_at < now()")
_REVOKED = Query.text(
    "select jti, extract(epoch from expires_at)::float as expires_at from revocations r "
    "where r.expires_at > now() and r.user_id like :prefix escape '\\'"
)
_TIERS = Query.text("select user_id, budget_tier from users where identity = :identity")

_log = logs.logger("changes")


class NotInRedisYet(DependencyUnavailable):
    """PostgreSQL took the decision, Redis has not."""

    def __init__(self) -> None:
        super().__init__("redis")


class Changes:
    def __init__(self, database: Database, redis: Client, registry: Registry, *, every: float = 1.0) -> None:
        """:param every: seconds between two looks at what Redis has missed."""
        self._database = database
        self._redis = redis
        self._registry = registry
        self._every = every
        self._pending = registry.gauge("redis_changes_pending", "Decisions that Redis does not know yet.")

    async def record(
        self, transaction: Transaction, identity: str, kind: str, payload: Mapping[str, str] | None = None
    ) -> None:
        """Within the transaction of the change itself.

        :param kind: for people who read the table.
        :param payload: ``{"deleted": user_id}`` when a user was deleted, which no row tells any more.
        """
        await transaction.fetch_one(_RECORD, identity=identity, kind=kind, payload=dict(payload or {}))

    async def waiting(self, identity: str) -> bool:
        """Whether something was decided about an identity that Redis may not know yet.

        :raises DependencyUnavailable:
        """
        return bool((await self._database.fetch(_WAITING, identity=identity))[0]["waiting"])

    async def apply(self, identity: str) -> None:
        """Bring Redis up to PostgreSQL's truth about an identity: its standing, tiers and revoked tokens.

        :raises NotInRedisYet: tried again in the background.
        :raises DatabaseUnavailable: so is this.
        """
        async with self._database.transaction() as transaction:
            await transaction.fetch(_LOCK, identity=identity)
            taken = (await transaction.fetch(_TAKEN, identity=identity))[0]
            standing = await storage.standing(transaction, identity)
            revoked = await transaction.fetch(_REVOKED, prefix=_like(identity) + ":%")
            tiers = {row["user_id"]: row["budget_tier"] for row in await transaction.fetch(_TIERS, identity=identity)}
            # who was deleted begins anew, should they come back
            deleted = {user: user.rpartition(":")[2] for user in taken["deleted"] or () if user not in tiers}
            try:
                await self._write(identity, standing, revoked, tiers, deleted)
            except RedisError as error:
                raise NotInRedisYet from error
            await transaction.execute(_DONE, identity=identity, id=taken["id"])

    async def _write(
        self,
        identity: str,
        standing: storage.Standing,
        revoked: list[Row],
        tiers: dict[str, str],
        deleted: dict[str, str],
    ) -> None:
        """
        :raises RedisError: :raises NotInRedisYet:
        """
        version = await budget_state.block_version(self._redis, identity)
        if not await budget_state.set_block(self._redis, identity, standing.value, version=version):
            raise NotInRedisYet  # one that was given up came between: once more
        async with self._redis.pipeline(transaction=False) as pipeline:  # a user may have revoked thousands
            for row in revoked:
                await budget_state.revoke_token(pipeline, identity, row["jti"], row["expires_at"])
            await pipeline.execute()
        for user, tier in (tiers | deleted).items():
            if is_user(user):  # what no token can carry has no state
                await budget_state.set_tier(self._redis, user, tier)
        await known.forget_others(self._redis, identity, list(tiers))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Applies in the background what could not be applied at once."""
        async with background.running(self._registry, redis_changes=self._keep_applying):
            yield

    async def _keep_applying(self) -> None:
        cleared = time.monotonic()
        while True:
            await asyncio.sleep(self._every)
            try:
                await self.apply_pending()
                if time.monotonic() - cleared >= _CLEAR_EVERY:
                    cleared = time.monotonic()
                    await self.clear_expired()
            except DependencyUnavailable as error:
                _log.warning("decisions_wait", dependency=error.dependency)

    async def apply_pending(self) -> None:
        """:raises DependencyUnavailable: something could not be applied; all else was."""
        failed: DependencyUnavailable | None = None
        for row in await self._database.fetch(_PENDING):
            try:
                await self.apply(row["identity"])
            except DependencyUnavailable as error:
                failed = error
                await self._ping()  # one identity's trouble is not to hold up the others
        self._pending.set((await self._database.fetch(_COUNT))[0]["pending"])
        if failed is not None:
            raise failed

    async def clear_expired(self) -> None:
        """Forget the revocations of tokens that have expired.

        :raises DependencyUnavailable:
        """
        await self._database.execute(_CLEAR)

    async def _ping(self) -> None:
        try:
            await self._redis.ping()
        except RedisError as error:
            raise DependencyUnavailable("redis") from error


def _like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
