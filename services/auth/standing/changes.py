"""Decisions on their way from PostgreSQL to Redis: applied at once, or as soon as Redis is back.

A change and its row in ``redis_changes`` are written in one transaction. Applying it reads all decisions about the
identity again and writes them to Redis, under an advisory lock, so that the order of changes doesn't matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from services.auth.standing import storage
from services.auth.standing.storage import Decided
from shared.domain.identity import is_user
from shared.errors import DependencyUnavailable
from shared.service import background
from shared.state import decisions
from shared.stores.postgres import Database
from shared.stores.redis import Client, RedisError, needed
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: Seconds between two deletions of revocations that have expired.
_CLEAR_EVERY = 300.0

_log = logs.logger("changes")


class NotInRedisYet(DependencyUnavailable):
    """A decision is in PostgreSQL but not in Redis yet."""

    def __init__(self) -> None:
        super().__init__("redis")


class Changes:
    def __init__(self, database: Database, redis: Client, registry: Registry, *, every: float = 1.0) -> None:
        """:param every: seconds between two checks for unapplied decisions."""
        self._database, self._redis = database, redis
        self._registry, self._every = registry, every
        self._pending = registry.gauge("redis_changes_pending", "Decisions that Redis does not know yet.")

    async def apply(self, identity: str) -> None:
        """Write all decisions about an identity from PostgreSQL to Redis: standing, tiers, refused tokens.

        After either error a background loop tries again.

        :raises NotInRedisYet: Redis did not take them.
        :raises DatabaseUnavailable: PostgreSQL could not be asked.
        """
        async with self._database.transaction() as transaction:
            decided = await storage.take(transaction, identity)
            if not decided.change:
                return  # another process was faster, or the identity was erased
            try:
                await self._write(identity, decided)
            except RedisError as error:
                raise NotInRedisYet from error
            await storage.done(transaction, identity, decided.change)

    async def _write(self, identity: str, decided: Decided) -> None:
        """
        :raises RedisError: Redis could not be asked.
        :raises NotInRedisYet: Redis has not taken it yet.
        """
        version = await decisions.standing_version(self._redis, identity)
        if not await decisions.set_standing(self._redis, identity, decided.standing, decided.oldest, version=version):
            raise NotInRedisYet  # an abandoned call came in between: try again
        async with self._redis.pipeline(transaction=False) as pipeline:  # a user may have revoked thousands
            for jti, expires_at in decided.revoked_tokens.items():
                await decisions.revoke_token(pipeline, identity, jti, expires_at)
            await pipeline.execute()
        for user, tier in decided.tiers.items():
            if is_user(user):  # ids that no token can carry have no state
                await decisions.set_user(self._redis, user, tier, decided.exceptions.get(user))
        await decisions.forget_others(self._redis, identity, list(decided.tiers))

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Apply waiting decisions in the background."""
        return background.running(self._registry, redis_changes=self._keep_applying)

    async def _keep_applying(self) -> None:
        cleared, more = time.monotonic(), False
        while True:
            await asyncio.sleep(0 if more else self._every)
            more = False
            try:
                more = await self.apply_pending()
                if time.monotonic() - cleared >= _CLEAR_EVERY:
                    cleared = time.monotonic()
                    await storage.clear_expired(self._database)
            except DependencyUnavailable as error:
                _log.warning("decisions_wait", dependency=error.dependency)

    async def apply_pending(self) -> bool:
        """Apply the decisions that have waited longest. Returns whether more wait.

        :raises DependencyUnavailable: some decisions could not be applied; all others were.
        """
        failed: DependencyUnavailable | None = None
        for identity in await storage.pending(self._database):
            try:
                await self.apply(identity)
            except DependencyUnavailable as error:
                failed = error
                with needed():  # a failure for one identity must not hold up the others
                    await self._redis.ping()
        pending = await storage.count_pending(self._database)
        self._pending.set(pending)
        if failed is not None:
            raise failed
        return pending > 0
