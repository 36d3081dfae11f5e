"""Provisioning on a real PostgreSQL, against a LiteLLM that misbehaves on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.auth.provisioning.client import LiteLLMAdmin
from services.auth.provisioning.services import Pace, Provisioner
from shared.domain.service_types import ServiceTypes, load
from shared.stores.postgres import Database, Query
from shared.telemetry.metrics import Registry
from tests.doubles.litellm_admin import MASTER_KEY, LiteLLMAdminDouble
from tests.support.service_types import development, toml

#: Without waiting for people: the sweep comes only when a test calls it.
QUICK = Pace(first_delay=0.01, max_delay=0.02, sweep_every=3600)

_INSERT = Query.text(
    "insert into users (user_id, identity, service_type, budget_tier, litellm_budget) "
    "values (:user, :user, 'ai', :tier, :budget)"
)
_TIER = Query.text("update users set budget_tier = :tier where user_id = :user")
_BUDGET = Query.text("select litellm_budget from users where user_id = :user")
_MISSING = Query.text("select count(*) as number from users where litellm_budget is null")


@dataclass
class World:
    """One PostgreSQL and one LiteLLM, for any number of provisioners."""

    database: Database
    litellm: LiteLLMAdminDouble
    session: aiohttp.ClientSession
    rows: ServiceTypes

    def admin(self, *urls: str, key: str = MASTER_KEY, timeout: float = 5) -> LiteLLMAdmin:
        return LiteLLMAdmin(self.session, urls or (self.litellm.url,), key, timeout=timeout)

    def provisioner(
        self,
        admin: LiteLLMAdmin | None = None,
        *,
        rows: ServiceTypes | None = None,
        factor: float = 2,
        pace: Pace = QUICK,
        registry: Registry | None = None,
    ) -> Provisioner:
        return Provisioner(
            admin or self.admin(), self.database, rows or self.rows, registry or Registry(), factor=factor, pace=pace
        )

    async def add(self, *users: str, tier: str = "ai", budget: str | None = None) -> None:
        for user in users:
            await self.database.execute(_INSERT, user=user, tier=tier, budget=budget)

    async def set_tier(self, user: str, tier: str) -> None:
        await self.database.execute(_TIER, user=user, tier=tier)

    async def remembered(self, user: str) -> Any:
        row = await self.database.fetch_one(_BUDGET, user=user)
        assert row is not None
        return row["litellm_budget"]

    async def missing(self) -> int:
        return int((await self.database.fetch(_MISSING))[0]["number"])


@pytest.fixture
async def world(postgres_url: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(
            await stack.enter_async_context(Database.connect(postgres_url)),
            await stack.enter_async_context(LiteLLMAdminDouble().running()),
            await stack.enter_async_context(aiohttp.ClientSession()),
            development(),
        )


@pytest.fixture
def service_types(tmp_path: Path) -> Callable[[str], ServiceTypes]:
    """Rows with the budgets that a test wants: ``ai=0.10/1d pro=5/30d``."""

    def make(text: str) -> ServiceTypes:
        rows = []
        for part in text.split():
            name, _, figures = part.partition("=")
            amount, _, duration = figures.partition("/")
            rows.append(toml(name, max_budget=amount, duration=duration))
        path = tmp_path / "service_types.toml"
        path.write_text("\n".join(rows))
        return load(path, debug=True)

    return make
