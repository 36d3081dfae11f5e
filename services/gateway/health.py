"""The dependencies of a gateway, checked by readiness while it runs, and by ``mlpa check gateway`` before it starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from services.gateway import client_keys
from services.gateway.budget.scripts import SCRIPTS
from services.gateway.budget.services import Budgets
from services.gateway.firefox.exchanges import Exchanges
from services.gateway.ledger.storage import can_write
from services.gateway.redis.executor import Executor
from services.gateway.settings import GatewaySettings
from services.gateway.tokens.keyset import key_set
from services.gateway.upstream.client import KeyRefused, LiteLLM, UpstreamConfig
from shared.errors import ServiceError
from shared.service.fetch import NoAnswer
from shared.service.health import Check, CheckFailed, Health
from shared.service.keyset import KeySet
from shared.service.service_types_file import ServiceTypesFile
from shared.state import rights
from shared.stores.postgres import Database
from shared.stores.redis import connect
from shared.stores.schema_check import PostgresCheck
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

_log = logs.logger("health")


def health(budgets: Budgets, database: Database, keys: KeySet, litellm: LiteLLM, file: ServiceTypesFile) -> Health:
    """The readiness of a running gateway."""

    async def keys_known() -> None:
        if not keys.loaded:
            raise CheckFailed("no key set of auth has been read yet")

    async def litellm_answers() -> None:
        if not litellm.healthy:
            raise CheckFailed("two health checks of LiteLLM failed")
        await _litellm_serves(litellm)

    return Health(
        [
            Check("redis", budgets.redis_takes_writes, required=True),
            Check("key_set", keys_known, required=True),
            Check("litellm", litellm_answers, required=False),
            Check("postgres", PostgresCheck(database, can_write), required=False),
            Check("auth", lambda: _auth_answers(keys), required=False),
            Check("totals", budgets.totals_known, required=False),
            *file.checks(),
        ]
    )


@asynccontextmanager
async def before_start(settings: GatewaySettings) -> AsyncIterator[Health]:
    """The checks that need no running gateway: nothing is reserved, settled or reaped.

    :raises ConfigurationError: a file named in the settings can't be used.
    """
    client_keys.configured(settings, settings.load_service_types())
    registry = Registry()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database.connect(settings.database_url.get_secret_value(), max_size=1)
        )
        redis = await stack.enter_async_context(Executor.open(settings.redis_url.get_secret_value(), ()))
        client = connect(settings.redis_url.get_secret_value())
        stack.push_async_callback(client.aclose)

        async def redis_serves() -> None:
            await redis.can_write()
            await rights.check(client, SCRIPTS)

        litellm = await stack.enter_async_context(LiteLLM.open(upstream_config(settings), registry))
        session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        keys = key_set(session, registry, issuer=settings.mlpa_issuer, jwks_url=settings.mlpa_jwks_url)
        stack.push_async_callback(keys.close)
        checks = [
            Check("postgres", PostgresCheck(database, can_write), required=True),
            Check("redis", redis_serves, required=True),
            Check("litellm", lambda: _litellm_serves(litellm), required=True),
            Check("auth", lambda: _auth_answers(keys), required=True),
        ]
        if settings.firefox_clients:
            exchanges = await stack.enter_async_context(Exchanges.open(settings, registry))
            checks.append(Check("exchange_key", lambda: _auth_knows_us(exchanges), required=True))
        yield Health(checks)


def upstream_config(settings: GatewaySettings) -> UpstreamConfig:
    key = settings.mlpa_virtual_key
    return UpstreamConfig(
        base_urls=settings.litellm_api_base,
        virtual_key=key.get_secret_value() if key else None,
        health_interval=settings.litellm_health_seconds,
        health_timeout=settings.litellm_health_timeout_seconds,
    )


async def _auth_answers(keys: KeySet) -> None:
    """:raises CheckFailed: the key set could not be read."""
    await keys.refresh()
    if keys.failure:
        raise CheckFailed(f"auth's key set can't be read: {keys.failure}")


async def _auth_knows_us(exchanges: Exchanges) -> None:
    """:raises CheckFailed: auth does not take the key by which it knows gateways."""
    try:
        known = await exchanges.known()
    except NoAnswer as error:
        raise CheckFailed(f"auth's /token can't be asked (AUTH_URL): {error.reason}") from error
    if not known:
        raise CheckFailed("auth, which needs FIREFOX_CLIENTS too, does not know EXCHANGE_KEY")


async def _litellm_serves(litellm: LiteLLM) -> None:
    """:raises CheckFailed: LiteLLM does not take the key, or does not list its models."""
    try:
        await litellm.model_info()
    except KeyRefused as error:
        _log.error("litellm_refuses_virtual_key", hint="mlpa virtual-key makes a new one")
        raise CheckFailed("LiteLLM refuses the virtual key (MLPA_VIRTUAL_KEY)") from error
    except ServiceError as error:
        raise CheckFailed("LiteLLM's models can't be read") from error
