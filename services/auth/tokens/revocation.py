"""Revocation of access tokens (RFC 7009): PostgreSQL, then Redis; the gateways look in Redis at each admission."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web

from services.auth.standing import storage
from services.auth.standing.changes import Changes
from services.auth.standing.digests import Digests
from services.auth.tokens.issuer import IssuedToken, Issuer
from shared.domain.identity import split_user, user_id
from shared.domain.tokens import CLOCK_SKEW
from shared.stores.postgres import Database


class Revocation:
    def __init__(
        self,
        issuer: Issuer,
        database: Database,
        changes: Changes,
        digests: Digests,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer, self._database, self._changes = issuer, database, changes
        self._digests, self._clock = digests, clock

    def recognise(self, token: str) -> IssuedToken | None:
        """One of our tokens that a gateway may still accept; None for anything else (RFC 7009 section 2.2)."""
        recognised = self._issuer.recognise(token)
        if recognised is None or _until(recognised) <= self._clock():
            return None
        return recognised

    async def revoke(self, token: IssuedToken) -> None:
        """Revoke a token. A repeated call costs one read, unless Redis lacks the revocation.

        :raises DependencyUnavailable: it is not in both PostgreSQL and Redis; a committed revocation is applied later.
        """
        identity, service_type = split_user(token.user_id)
        if await storage.knows_revoked(self._database, identity, token.jti):
            return
        until = datetime.fromtimestamp(_until(token), UTC)
        async with self._database.transaction() as transaction:
            # Tokens of an erased identity are refused anyway, unless it returns
            name = await storage.kept_as(transaction, identity, self._digests.all(identity))
            new = await storage.revoke_token(transaction, token.jti, user_id(name, service_type), until)
            if new and name == identity:
                await storage.record(transaction, identity, "token revoked")
        await self._changes.apply(identity)


REVOCATION = web.AppKey("revocation", Revocation)


def _until(token: IssuedToken) -> float:
    """The time until which a gateway with a slow clock may accept it."""
    return token.expires_at + CLOCK_SKEW
