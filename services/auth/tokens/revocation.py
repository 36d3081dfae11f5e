"""Revocation of access tokens (RFC 7009): PostgreSQL, then Redis; the gateways look in Redis at each admission."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from services.auth.tokens.issuer import Issuer
from services.auth.users.changes import Changes
from shared.identity import split_user
from shared.postgres import Database, Query
from shared.tokens import CLOCK_SKEW

_INSERT = Query.text(
    "insert into revocations (jti, user_id, expires_at) values (:jti, :user_id, :expires_at) "
    "on conflict do nothing returning jti"
)


class Revocation:
    def __init__(
        self, issuer: Issuer, database: Database, changes: Changes, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._issuer = issuer
        self._database = database
        self._changes = changes
        self._clock = clock

    async def revoke(self, token: str) -> None:
        """Revoke one of our tokens; anything else is left as it is (RFC 7009 section 2.2).

        :raises DependencyUnavailable: not recorded in both places; what PostgreSQL took is applied later.
        """
        recognised = self._issuer.recognise(token)
        if recognised is None:
            return
        # by the clock of a gateway that is behind, it has not expired yet
        until = recognised.expires_at + CLOCK_SKEW
        if until <= self._clock():
            return
        identity, _ = split_user(recognised.user_id)
        async with self._database.transaction() as transaction:
            new = await transaction.fetch_one(
                _INSERT,
                jti=recognised.jti,
                user_id=recognised.user_id,
                expires_at=datetime.fromtimestamp(until, UTC),
            )
            if new:
                await self._changes.record(transaction, identity, "token revoked")
        # asked again and again it is one read, unless Redis has missed it so far
        if new or await self._changes.waiting(identity):
            await self._changes.apply(identity)
