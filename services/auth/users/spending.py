"""The spending of users in their current period, and the forecast of their next request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from services.auth.users import operators_storage as storage
from shared.domain.identity import is_user
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.state import decisions
from shared.state.decisions import Outlook, Recorded, UserState
from shared.state.layout import Standing
from shared.stores.postgres import Database
from shared.stores.redis import Client, RedisError


@dataclass(frozen=True, slots=True)
class Spent:
    """A user's current period. Money in nano-dollars, ``resets_at`` in Unix time.

    ``reserved_nano`` is what open requests may still cost. It is 0 when Redis has no state of the user.
    """

    spent_nano: int
    reserved_nano: int
    max_budget_nano: int
    resets_at: int

    @property
    def remaining_nano(self) -> int:
        return max(0, self.max_budget_nano - self.spent_nano - self.reserved_nano)

    @property
    def share(self) -> float:
        """The spent part of the budget; 1 = all of it."""
        if self.max_budget_nano:
            return self.spent_nano / self.max_budget_nano
        return 1.0 if self.spent_nano else 0.0


class Spending:
    """The spending of users: from Redis, or from the ledger for users without state in Redis."""

    def __init__(self, database: Database, redis: Client, service_types: ServiceTypes) -> None:
        self._database, self._redis = database, redis
        self._rows = service_types.by_name

    def row(self, user_id: str, tier: str) -> ServiceType | None:
        """The row whose money and rates hold for a user. As in the gateways, a tier without a row counts as the user's
        own service type."""
        return self._rows.get(tier) or self._rows.get(user_id.rpartition(":")[2])

    async def of(self, users: Sequence[storage.UserRow], now: float) -> dict[str, Spent]:
        """What users have spent, by user id."""
        tiers = {user.user_id: user.budget_tier for user in users}
        extra = {user.user_id: one.extra_nano for user in users if (one := user.exception)}
        states = await self._states(list(tiers))
        found: dict[str, Spent] = {}
        from_ledger: dict[str, tuple[ServiceType, int]] = {}
        budget: dict[str, int] = {}
        for user_id, tier in tiers.items():
            row, state = self.row(user_id, tier), states.get(user_id)
            if row is None:
                found[user_id] = Spent(0, 0, 0, int(now))
                continue
            budget[user_id] = row.max_budget_nano + extra.get(user_id, 0)
            if state is not None and state.period_seconds == row.duration_seconds:
                resets_at = (state.period_index + 1) * state.period_seconds
                found[user_id] = Spent(state.spent_nano, state.reserved_nano, budget[user_id], resets_at)
            else:
                from_ledger[user_id] = row, int(now) // row.duration_seconds * row.duration_seconds
        spans = {user_id: (start, start + row.duration_seconds) for user_id, (row, start) in from_ledger.items()}
        spent = await storage.spent(self._database, spans)
        for user_id in from_ledger:
            state = states.get(user_id)
            reserved = state.reserved_nano if state else 0
            found[user_id] = Spent(spent[user_id], reserved, budget[user_id], spans[user_id][1])
        return found

    async def _states(self, user_ids: list[str]) -> dict[str, UserState | None]:
        known = [user_id for user_id in user_ids if is_user(user_id)]  # tokens carry no others
        if not known:
            return {}
        try:
            return dict(zip(known, await decisions.read_users(self._redis, known), strict=True))
        except RedisError:
            return {}  # the ledger has it

    async def outlook(self, user: storage.UserRow, spent: Spent, *, least: int) -> Outlook | None:
        """The reasons that refuse a user's request which reserves ``least`` nano-dollars, mostly for its prompt.

        :returns: None when Redis can't tell, or no row holds for the user.
        """
        if not is_user(user.user_id):
            return None
        standing = Standing.of(blocked=user.blocked_at, revoked=user.device_revoked_at)
        revoked = await storage.revoked_tokens(self._database, user.user_id)
        recorded = Recorded(user.budget_tier, standing, spent.spent_nano, revoked, user.exception)
        try:
            return await decisions.outlook(self._redis, user.user_id, self._rows, recorded, least=least, empty=1)
        except RedisError:
            return None


SPENDING = web.AppKey("spending", Spending)
