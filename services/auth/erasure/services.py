"""Erases identities: from PostgreSQL at once, from Redis and LiteLLM as soon as they can be asked.

``erase`` commits what PostgreSQL holds, together with the erasure itself: a row with the digest and, encrypted, the
identity. The steps that follow may each be repeated:

1. *Redis.* All state is deleted, and FxA's cached verifications. While requests are open or not in the ledger yet,
   the identity is blocked instead, which ends them; then 1 and 2 are tried again.
2. *Records.* Ledger and audit log get the digest in place of the id. Gateways put it into rows that come later.
3. *LiteLLM.* The customers are deleted, and the rows of their requests where LITELLM_DATABASE_URL is set.

All of it is done once more a minute later: LiteLLM writes what a request cost some 15 s late, and makes a customer for
it; and a gateway whose Redis was lost may have registered an open request again. Then the row keeps the digest alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from services.auth.audit import storage as audit
from services.auth.audit.storage import Actor
from services.auth.erasure import storage
from services.auth.erasure.storage import Open
from services.auth.provisioning.client import LiteLLMAdmin, LiteLLMError, NoDatabase
from services.auth.standing import storage as standing
from services.auth.standing.changes import NotInRedisYet
from services.auth.standing.digests import Digests
from services.auth.users import operators_storage, pools
from shared.domain.identity import Credential, user_id
from shared.domain.service_types import ServiceTypes
from shared.domain.tokens import LONGEST_PLAY_LIFE
from shared.errors import DependencyUnavailable, NotFound
from shared.service import background
from shared.state import decisions
from shared.stores.postgres import Database, Transaction
from shared.stores.redis import Client, RedisError
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: How long an erasure may take before its caller is answered, in seconds; the rest follows in the background.
_PATIENCE = 3.0
_POLL = 0.2
#: Seconds for which the fingerprint of an identity is kept: no token lives longer, and no row comes later.
_FINGERPRINT_KEPT = LONGEST_PLAY_LIFE + 3600.0
_MOST_PAUSE = 60.0
_CLEAR_EVERY = 300.0

_log = logs.logger("erasure")


class Erasures:
    def __init__(
        self,
        database: Database,
        jobs: Database,
        redis: Client,
        service_types: ServiceTypes,
        digests: Digests,
        registry: Registry,
        *,
        purge_fxa: Callable[[str], Awaitable[object]],
        litellm: LiteLLMAdmin | None = None,
        litellm_rows: Database | None = None,
        settle: float = 60.0,
        every: float = 1.0,
    ) -> None:
        """
        :param jobs: connections on which a statement may take longer than on those of a request.
        :param purge_fxa: drops the cached verifications of an FxA uid; raises DependencyUnavailable.
        :param litellm_rows: LiteLLM's own database.
        :param settle: seconds after which everything is done once more.
        """
        self._database, self._jobs, self._redis = database, jobs, redis
        self._rows, self._digests, self._registry = service_types.by_name, digests, registry
        self._purge_fxa, self._litellm, self._litellm_rows = purge_fxa, litellm, litellm_rows
        self._settle, self._every = settle, every
        self._unreadable: set[str] = set()  # logged digests of erasures whose secret is gone
        self._oldest = registry.gauge("erasures_oldest_seconds", "Age of the oldest erasure that is not finished.")

    async def erase(self, identity: str, actor: Actor) -> None:
        """Erase an identity in all its service types.

        On return PostgreSQL and Redis have taken it: every credential and token of before is refused, and open requests
        are ending. What is left follows in the background, as it does after DependencyUnavailable; the same call again
        continues an erasure that has begun.

        :raises NotFound: nothing is held about it.
        :raises DependencyUnavailable: PostgreSQL did not take it, or Redis has not yet.
        """
        if "\0" in identity:
            raise NotFound
        try:
            async with asyncio.timeout(_PATIENCE):
                async with self._database.transaction() as transaction:
                    erasure = await self._begin(transaction, identity, actor)
        except TimeoutError as error:
            raise DependencyUnavailable("postgres") from error
        if erasure is None:
            await self._forget(identity, list(self._rows))
            raise NotFound("There is nothing about this identity.")
        await self._forget(identity, erasure.service_types)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while not await self._leave_stores(erasure, identity):  # noqa: ASYNC110 - gateways tell nobody
                    await asyncio.sleep(_POLL)
                with contextlib.suppress(DependencyUnavailable, LiteLLMError):
                    await self._leave_litellm(identity, erasure.service_types)

    async def block(self, identity: str, actor: Actor, reason: str | None) -> None:
        """Refuse an erased identity, should it return.

        :raises NotFound: it was not erased, or has returned.
        :raises DependencyUnavailable: PostgreSQL did not take it.
        """
        if "\0" in identity:
            raise NotFound("There is no such user.")
        async with self._database.transaction() as transaction:
            digest = await standing.kept_as(transaction, identity, self._digests.all(identity))
            if digest == identity:
                raise NotFound("There is no such user.")
            reason = reason and reason.replace(identity, digest)
            await standing.block(transaction, digest, reason)
            await audit.record(transaction, actor, "user.block", digest, new={"blocked": True, "reason": reason})

    async def unblock(self, identity: str, actor: Actor) -> None:
        """Admit an erased identity, should it return, in spite of the block that it had.

        :raises NotFound: no block of it is kept.
        :raises DependencyUnavailable: PostgreSQL did not take it.
        """
        async with self._database.transaction() as transaction:
            if not await storage.unblock(transaction, self._digests.all(identity)):
                raise NotFound("There is no such user.")
            new = {"blocked": False, "reason": None}
            await audit.record(transaction, actor, "user.unblock", self._digests.of(identity), new=new)

    async def _begin(self, transaction: Transaction, identity: str, actor: Actor) -> Open | None:
        users = await storage.lock_users(transaction, identity)
        if not users:
            erasure = await storage.unfinished(transaction, identity)
            if erasure and self._digests.unseal(erasure.sealed) == identity:
                return erasure  # its records may still have the id
            if not erasure and not await storage.is_held(transaction, identity):
                return None
        digest, service_types = self._digests.of(identity), [user["service_type"] for user in users]
        every_type = sorted({*service_types, *self._rows})
        erasure = await storage.begin(transaction, identity, digest, self._digests.seal(identity), every_type)
        for service_type in service_types:
            await operators_storage.make_room(transaction, service_type)
        rows = {row.pool: row for name in service_types if (row := self._rows.get(name)) and row.pool}
        for _, row in sorted(rows.items()):  # each erasure in this order, or two could wait for each other for ever
            await pools.leave(transaction, identity, row)
        await audit.record(transaction, actor, "user.erase", digest, old={"service_types": service_types})
        return erasure

    async def _leave_stores(self, erasure: Open, identity: str) -> bool:
        """Take the rest of the steps in PostgreSQL and Redis. False if requests are still open.

        :raises DependencyUnavailable: it has to be done again.
        """
        if not (erasure.forgotten and await storage.has_returned(self._database, identity)):
            left = await self._forget(identity, erasure.service_types)
            await storage.rename_records(self._jobs, identity, erasure.digest)
            if left:
                return False
        if not erasure.forgotten:
            await storage.forgotten(self._database, erasure)
        return True

    async def _forget(self, identity: str, service_types: list[str]) -> int:
        """Delete what Redis holds. Returns the number of requests that prevent it.

        :raises DependencyUnavailable: Redis could not be asked.
        """
        try:
            left = await decisions.forget(self._redis, identity, service_types)
        except RedisError as error:
            raise NotInRedisYet from error
        if Credential.of(identity) is Credential.FXA:
            await self._purge_fxa(identity)
        return left

    async def _leave_litellm(self, identity: str, service_types: list[str]) -> None:
        """:raises DependencyUnavailable, LiteLLMError: it has to be done again."""
        users = [user_id(identity, service_type) for service_type in service_types]
        if self._litellm is not None:
            with contextlib.suppress(NoDatabase):
                for user in users:
                    await self._litellm.delete_customer(user)
            await storage.unprovision(self._database, identity)
        if self._litellm_rows is not None:
            await storage.delete_spend_rows(self._litellm_rows, users)

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Finish erasures in the background."""
        return background.running(self._registry, erasures=self._keep_finishing)

    async def _keep_finishing(self) -> None:
        pause, cleared = self._every, time.monotonic()
        while True:
            await asyncio.sleep(pause)
            try:
                await self.finish()
                pause = self._every
                if time.monotonic() - cleared >= _CLEAR_EVERY:
                    cleared = time.monotonic()
                    await storage.clear(self._database, _FINGERPRINT_KEPT)
            except (DependencyUnavailable, LiteLLMError) as error:
                dependency = error.dependency if isinstance(error, DependencyUnavailable) else "litellm"
                _log.warning("erasure_waits", dependency=dependency)
                pause = min(2 * pause, _MOST_PAUSE)

    async def finish(self) -> None:
        """Take the steps of all erasures that are due.

        :raises DependencyUnavailable, LiteLLMError: some have to be done again; all others were done.
        """
        failure: DependencyUnavailable | LiteLLMError | None = None
        async for erasure in storage.open_erasures(self._database, self._settle):
            identity = self._digests.unseal(erasure.sealed)
            if identity is None:
                if erasure.digest not in self._unreadable:
                    self._unreadable.add(erasure.digest)
                    _log.error("erasure_has_no_secret", digest=erasure.digest)
                continue
            try:
                if not await self._leave_stores(erasure, identity):
                    continue
                await self._leave_litellm(identity, erasure.service_types)
                if erasure.forgotten:
                    await storage.done(self._database, erasure)
                    _log.info("erased", digest=erasure.digest)
            except (DependencyUnavailable, LiteLLMError) as error:
                failure = error
        self._oldest.set(await storage.oldest(self._database))
        if failure is not None:
            raise failure


ERASURES = web.AppKey("erasures", Erasures)
