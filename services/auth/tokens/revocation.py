"""Revocation of access tokens (RFC 7009): PostgreSQL, then Redis; the gateways look in Redis at each admission."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from services.auth.standing.changes import Changes
from services.auth.tokens.issuer import IssuedToken, Issuer
from shared.identity import split_user
from shared.postgres import Database, Query
from shared.tokens import CLOCK_SKEW

_INSERT = Query.text(
    "insert into revocations (jti, user_id, expires_at) values (:jti, :user_id, :expires_at) "
    "on conflict do nothing returning jti"
)
#: Whether a token is revoked, and whether Redis may not know it yet.
_KNOWN = Query.text(
    "select exists (select from redis_changes where identity = :identity) as waiting from revocations where jti = :jti"
)


class Revocation:
    def __init__(
        self, issuer: Issuer, database: Database, changes: Changes, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._issuer = issuer
        self._database = database
        self._changes = changes
        self._clock = clock

    def recognise(self, token: str) -> IssuedToken | None:
        """One of our tokens that some gateway may still take; None for anything else (RFC 7009 section 2.2)."""
        recognised = self._issuer.recognise(token)
        if recognised is None or _until(recognised) <= self._clock():
            return None
        return recognised

    async def revoke(self, token: IssuedToken) -> None:
        """Revoke a token. Asked again, it costs one read, unless Redis has missed it so far.

        :raises DependencyUnavailable: not recorded in both places; what PostgreSQL took is applied later.
        """
        identity, _ = split_user(token.user_id)
        known = await self._database.fetch(_KNOWN, identity=identity, jti=token.jti)
        if known and not known[0]["waiting"]:
            return
        async with self._database.transaction() as transaction:
            new = await transaction.fetch_one(
                _INSERT,
                jti=token.jti,
                user_id=token.user_id,
                expires_at=datetime.fromtimestamp(_until(token), UTC),
            )
            if new:
                await self._changes.record(transaction, identity, "token revoked")
        if new or await self._changes.waiting(identity):
            await self._changes.apply(identity)


def _until(token: IssuedToken) -> float:
    """Until then it has not expired by the clock of a gateway that is behind."""
    return token.expires_at + CLOCK_SKEW
