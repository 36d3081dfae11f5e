"""The connections that auth opens when it starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp

from services.auth.settings import AuthSettings
from shared.stores.dependency import Dependency
from shared.stores.postgres import Database
from shared.stores.redis import Client, connect
from shared.telemetry.metrics import Registry


@dataclass(frozen=True, slots=True)
class Connections:
    """PostgreSQL, Redis and HTTP, shared by all of auth."""

    database: Database
    redis: Client
    redis_state: Dependency
    session: aiohttp.ClientSession
    registry: Registry


@asynccontextmanager
async def open_connections(settings: AuthSettings, registry: Registry) -> AsyncIterator[Connections]:
    """The connections, open for as long as the context lasts."""
    async with AsyncExitStack() as stack:
        state = Dependency("redis")
        redis = connect(settings.redis_url.get_secret_value(), state=state)
        stack.push_async_callback(redis.aclose)
        database = await stack.enter_async_context(
            Database.connect(settings.database_url.get_secret_value(), max_size=settings.database_pool_size)
        )
        session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        yield Connections(database, redis, state, session, registry)
