"""Admission of identities: known users at once, newcomers while there is room, blocked ones never."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from services.auth.errors import AccessDenied, InvalidSubjectToken, MaxUsersReached, UserBlocked
from services.auth.standing import storage as decided
from services.auth.standing.digests import Digests
from services.auth.users import storage
from shared.domain.identity import user_id
from shared.domain.service_types import ServiceType
from shared.errors import DependencyUnavailable
from shared.service import background
from shared.state import decisions
from shared.state.decisions import Known, Oldest
from shared.state.layout import Standing
from shared.stores.postgres import Database
from shared.stores.redis import Client, RedisError
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

_SEEN_EVERY = 10.0
_SEEN_AT_MOST = 10_000

_log = logs.logger("users")


class Users:
    """The gate of an exchange: it checks an identity's standing and makes its user row.

    Known users are answered from Redis, so that they get in while PostgreSQL is down; without Redis, PostgreSQL is
    asked.
    """

    def __init__(
        self,
        database: Database,
        redis: Client,
        registry: Registry,
        digests: Digests,
        *,
        on_entry: Callable[[str], None] | None = None,
    ) -> None:
        """:param on_entry: called with the id of each user that entered; it must not raise."""
        self._database, self._digests = database, digests
        self._redis, self._registry = redis, registry
        self._seen: set[str] = set()
        self._fallbacks = registry.counter(
            "exchange_fallbacks_total", "Exchanges decided without a dependency.", ("dependency",)
        )
        self._fallbacks.preset("redis")
        self._on_entry = on_entry

    async def enter(
        self,
        identity: str,
        row: ServiceType,
        *,
        issued_at: float | None = None,
        generation: int | None = None,
        reply: Any = None,
    ) -> None:
        """
        :param issued_at: the unix time of the credential's issue, if it says so; ``generation`` likewise.
        :param reply: to ``decisions.ask_known``; None if Redis has not answered yet.
        :raises AccessDenied: the identity is blocked, or its device revoked.
        :raises InvalidSubjectToken: the credential is older than the identity's oldest that is good.
        :raises MaxUsersReached: a newcomer, and the service type is full.
        :raises DependencyUnavailable: neither Redis nor PostgreSQL could be asked, or a new generation not recorded.
        """
        user = user_id(identity, row.name)
        remembered = decisions.read_known(reply) if reply else await self._remembered(identity, row.name)
        if remembered is not None and remembered.user and remembered.standing is not None:
            known, standing, oldest, digests = True, remembered.standing, remembered.oldest, []
        else:
            known, digests = False, self._digests.all(identity)
            standing, oldest = await decided.standing_at_door(self._database, identity, digests)
        if standing is Standing.GOOD:
            too_old = issued_at is not None and issued_at < oldest.issued
            if too_old or (generation is not None and generation < oldest.generation):
                raise InvalidSubjectToken
        if not known:
            try:
                if standing is Standing.GOOD and not await storage.enter(
                    self._database, user, identity, row, digests, oldest
                ):
                    raise MaxUsersReached
            except storage.DecisionChanged:
                await self.enter(identity, row, issued_at=issued_at, generation=generation)
                return
            await self._remember(identity, row.name, standing, remembered, oldest)
        if standing is Standing.BLOCKED:
            raise UserBlocked
        if standing is not Standing.GOOD:
            raise AccessDenied
        if generation is not None and generation > oldest.generation:
            await self._raise_generation(identity, row.name, generation, remembered)
        if len(self._seen) < _SEEN_AT_MOST:
            self._seen.add(user)
        if self._on_entry is not None:
            self._on_entry(user)

    async def _remembered(self, identity: str, service_type: str) -> Known | None:
        try:
            return await decisions.known(self._redis, identity, service_type)
        except RedisError:
            self._fallbacks.inc("redis")
            return None

    async def _remember(
        self, identity: str, service_type: str, standing: Standing, remembered: Known | None, oldest: Oldest
    ) -> bool:
        if remembered is None:
            return False
        try:
            version = remembered.version
            return await decisions.remember(self._redis, identity, service_type, standing, version, oldest)
        except RedisError:
            return False

    async def _raise_generation(
        self, identity: str, service_type: str, generation: int, remembered: Known | None
    ) -> None:
        """Have older tokens refused, once for each generation.

        :raises InvalidSubjectToken: it is an older one itself, as PostgreSQL knows.
        :raises DatabaseUnavailable: PostgreSQL could not be asked.
        """
        async with self._database.transaction() as transaction:
            oldest = await decided.raise_generation(transaction, identity, generation)
            if not await self._remember(identity, service_type, Standing.GOOD, remembered, oldest):
                await decided.record(transaction, identity, "generation")
        if generation < oldest.generation:
            raise InvalidSubjectToken

    async def flush_seen(self) -> None:
        """Write ``last_seen_at`` of the users seen since the last call.

        :raises DependencyUnavailable: the next call writes them, as after any other error.
        """
        batch, self._seen = self._seen, set()
        try:
            if batch:
                await storage.seen(self._database, sorted(batch))
        except Exception:
            self._seen |= batch
            raise

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write ``last_seen_at`` in the background, and once more at the end."""
        async with background.running(self._registry, last_seen=self._keep_flushing):
            yield
        with contextlib.suppress(DependencyUnavailable):
            await self.flush_seen()

    async def _keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(_SEEN_EVERY)
            try:
                await self.flush_seen()
            except DependencyUnavailable:
                _log.warning("last_seen_waits", users=len(self._seen))
