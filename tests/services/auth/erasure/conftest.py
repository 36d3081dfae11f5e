"""Erasures on a real PostgreSQL and Valkey, beside a gateway's budgets and a LiteLLM that misbehaves on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import aiohttp
import pytest

from services.auth.audit.storage import Actor
from services.auth.erasure.services import Erasures
from services.auth.provisioning.client import LiteLLMAdmin
from services.auth.standing.changes import Changes
from services.auth.users.entry import Users
from services.auth.users.operators import UserAdmin
from services.auth.users.spending import Spending
from shared.domain.service_types import ServiceTypes
from shared.stores.postgres import Database, Query
from shared.stores.redis import Client, connect
from shared.telemetry.metrics import Registry
from tests.doubles.litellm_admin import MASTER_KEY, LiteLLMAdminDouble
from tests.services.gateway.budget.support import row, rows
from tests.support.digests import DIGESTS

JANE = Actor("jane", "10.0.0.1")
#: Every table and the text of its rows.
_TABLES = Query.text(
    "select relname as name from pg_class where relkind in ('r', 'p') and not relispartition"
    " and relnamespace = 'public'::regnamespace"
)


@dataclass
class World:
    """Auth's rooms that know an identity."""

    database: Database
    redis: Client
    redis_url: str
    postgres_url: str
    types: ServiceTypes
    litellm: LiteLLMAdminDouble
    litellm_admin: LiteLLMAdmin
    users: Users
    changes: Changes
    admin: UserAdmin
    purged: list[str] = field(default_factory=list)

    @cached_property
    def erasures(self) -> Erasures:
        return self.restarted()

    def restarted(self, **options: Any) -> Erasures:
        """Erasures as another process has them."""

        async def purge(uid: str) -> None:
            self.purged.append(uid)

        given = {"database": self.database, "jobs": self.database, "redis": self.redis, "digests": DIGESTS, **options}
        return Erasures(
            service_types=self.types,
            registry=Registry(),
            purge_fxa=purge,
            litellm=self.litellm_admin,
            settle=0,
            every=0.05,
            **given,
        )

    async def run(self, sql: str, **params: Any) -> list[dict[str, Any]]:
        return await self.database.fetch(Query.text(sql), **params)

    async def one(self, sql: str, **params: Any) -> Any:
        return next(iter((await self.run(sql, **params))[0].values()))

    async def traces(self, identity: str) -> list[str]:
        """The places that hold an identity: rows of tables, keys and values of Redis, customers of LiteLLM."""
        found = []
        for table in await self.database.fetch(_TABLES):
            rows_of = await self.run(
                f"select t::text as text from {table['name']} as t where position(:identity in t::text) > 0",
                identity=identity,
            )
            found += [f"{table['name']}: {one['text']}" for one in rows_of]
        async for key in self.redis.scan_iter():
            reads = {
                b"none": lambda key: self.redis.get(key),  # it has expired
                b"string": lambda key: self.redis.get(key),
                b"hash": lambda key: self.redis.hgetall(key),
                b"zset": lambda key: self.redis.zrange(key, 0, -1),
            }
            value = await reads[await self.redis.type(key)](key)
            if identity.encode() in key or identity in str(value):
                found.append(f"redis: {key!r} {value!r}")
        return found + [f"litellm: {user}" for user in self.litellm.customers if identity in user]

    async def sums(self) -> list[Any]:
        """What is not about one identity alone, and must not change by an erasure."""
        return [
            await self.one("select coalesce(sum(spent_nano), 0)::text from user_spend"),
            *[
                await self.run(f"select {columns} from {table} group by {keys} order by {keys}")
                for table, keys, columns in (
                    ("ledger_totals", "service_type, hour, shard", "service_type, hour, shard, sum(spent_nano)::text"),
                    (
                        "ledger_hours",
                        "hour, service_type, model, purpose, credential, outcome",
                        "hour, credential, outcome, sum(requests)::text as n, sum(cost_nano)::text as cost",
                    ),
                    ("ledger", "service_type, outcome", "service_type, count(*) as n, sum(cost_nano)::text as cost"),
                )
            ],
        ]


@pytest.fixture
async def world(postgres_url: str, redis_url: str) -> AsyncIterator[World]:
    registry, types = Registry(), rows(row("ai"), row("memories"))
    async with (
        Database.connect(postgres_url, max_size=10, timeout=10) as database,
        connect(redis_url) as redis,
        LiteLLMAdminDouble().running() as litellm,
        aiohttp.ClientSession() as session,
    ):
        changes = Changes(database, redis, registry)
        yield World(
            database,
            redis,
            redis_url,
            postgres_url,
            types,
            litellm,
            LiteLLMAdmin(session, [litellm.url], MASTER_KEY),
            Users(database, redis, registry, DIGESTS),
            changes,
            UserAdmin(database, Spending(database, redis, types), changes, types),
        )
