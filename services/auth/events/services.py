"""The effects of FxA's events about an account.

A changed password is committed in one transaction with its delivery and a row in ``redis_changes``. A deleted account
is erased before its delivery is committed. A delivery is answered with success once Redis has all of it too; otherwise
FxA sends the events again, in another token.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from functools import partial

from aiohttp import web

from services.auth.audit.storage import Actor
from services.auth.erasure.services import Erasures
from services.auth.errors import InvalidSecurityEvent, UnknownSecurityEvent
from services.auth.events import storage
from services.auth.events.metrics import EventMetrics
from services.auth.fxa import security_events
from services.auth.fxa.security_events import MALFORMED, AccountEvents, Reason, Refused
from services.auth.fxa.services import FxAVerifier
from services.auth.standing import storage as standing
from services.auth.standing.changes import Changes
from services.auth.standing.digests import Digests
from shared.errors import DependencyUnavailable, NotFound
from shared.service import background
from shared.stores.postgres import Database
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: Seconds between two deletions of deliveries that can't be sent again.
_CLEAR_EVERY = 300.0

_log = logs.logger("fxa_events")


class FxAEvents:
    def __init__(
        self,
        database: Database,
        fxa: FxAVerifier,
        changes: Changes,
        erasures: Erasures,
        digests: Digests,
        registry: Registry,
        *,
        issuer: str,
        client_ids: Collection[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        :param issuer: FxA's, without a slash at its end.
        :param client_ids: the relying parties that events may be for.
        """
        self._database, self._fxa, self._changes = database, fxa, changes
        self._erasures, self._digests, self._registry = erasures, digests, registry
        self._issuer, self._client_ids, self._clock = issuer, client_ids, clock
        self._metrics = EventMetrics(registry)

    async def deliver(self, token: str | None, source: str) -> None:
        """Take the events of a token, unless it was taken before.

        :param token: None if there is none.
        :param source: the address that sent it, for the audit log.
        :raises UnknownSecurityEvent: it is not one of FxA's for us.
        :raises InvalidSecurityEvent: it is one, and malformed.
        :raises DependencyUnavailable: it could not be checked, or is not known to have been committed.
        """
        try:
            events = await self._verify(token)
            await self._take(events, source)
        except Refused as refused:
            self._metrics.refusals.inc(refused.reason)
            if refused.reason.signed:
                _log.warning("fxa_event_refused", reason=refused.reason.value)
            if refused.reason in MALFORMED:
                raise InvalidSecurityEvent from refused
            raise UnknownSecurityEvent(missing=refused.reason is Reason.MISSING) from refused
        except DependencyUnavailable as error:
            self._metrics.failures.inc(error.dependency)
            raise

    async def _verify(self, token: str | None) -> AccountEvents:
        """
        :raises Refused: with the reason.
        :raises DependencyUnavailable: FxA's keys could not be read.
        """
        if token is None:
            raise Refused(Reason.MISSING)
        unverified = security_events.parse(token)
        key = await self._fxa.keys.get(unverified.kid)
        if key is None:
            raise Refused(Reason.KEY)
        return security_events.verify(
            unverified, key, issuer=self._issuer, client_ids=self._client_ids, now=self._clock()
        )

    async def _take(self, events: AccountEvents, source: str) -> None:
        """:raises DependencyUnavailable: PostgreSQL or Redis may lack some of it."""
        if events.deleted and not await storage.is_taken(self._database, events.jti):
            await self._delete(events.uid, source)
        changed_ms = None if events.deleted else events.password_changed_ms
        async with self._database.transaction() as transaction:
            new = await storage.take(transaction, events.jti, events.expires_at)
            if new and changed_ms is not None:
                name = await standing.kept_as(transaction, events.uid, self._digests.all(events.uid))
                if await standing.refuse_older(transaction, name, changed_ms) and name == events.uid:
                    await standing.record(transaction, events.uid, "password changed")
        if new:
            for name in events.types:
                self._metrics.events.inc(name)
        # Also for an earlier delivery that Redis has not taken yet: the loop of ``Changes`` purges nothing
        if changed_ms is not None:
            await self._fxa.purge(events.uid)
            await self._changes.apply(events.uid)

    async def _delete(self, uid: str, source: str) -> None:
        """:raises DependencyUnavailable: PostgreSQL or Redis may lack some of it."""
        # Kept under the digest after the erasure, so that a token in hand makes no new user
        next_second = int(self._clock()) + 1
        async with self._database.transaction() as transaction:
            name = await standing.kept_as(transaction, uid, self._digests.all(uid))
            await standing.refuse_older(transaction, name, next_second * 1000)
        with contextlib.suppress(NotFound):
            await self._erasures.erase(uid, Actor("FxA", source))

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Forget old deliveries in the background."""
        clear = partial(storage.clear_expired, self._database)
        return background.running(self._registry, fxa_deliveries=background.every(_CLEAR_EVERY, clear))


FXA_EVENTS = web.AppKey("fxa_events", FxAEvents)
