"""Checks of auth's dependencies: by readiness while it runs, and by ``mlpa check auth`` before it starts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from services.auth.connections import Connections, open_connections
from services.auth.fxa.http import FxAClient
from services.auth.fxa.jwks import key_set
from services.auth.fxa.metrics import FxAMetrics
from services.auth.fxa.models import FxAConfig
from services.auth.fxa.services import FxAVerifier
from services.auth.play.google import PlayIntegrity, credentials_of
from services.auth.play.metrics import PlayMetrics
from services.auth.provisioning.client import LiteLLMAdmin, LiteLLMError
from services.auth.settings import AuthSettings
from services.auth.tokens.key_ring import KeyRing
from services.auth.users.storage import can_write
from shared.service.fetch import NoAnswer
from shared.service.health import Check, CheckFailed, Health
from shared.service.keyset import KeySet
from shared.service.service_types_file import ServiceTypesFile
from shared.state import decisions, rights
from shared.stores.redis import can_write as redis_can_write
from shared.stores.schema_check import PostgresCheck
from shared.telemetry.metrics import Registry


def health(key_ring: KeyRing, connections: Connections, fxa: FxAVerifier, file: ServiceTypesFile) -> Health:
    """The readiness of a running auth."""
    return Health(
        [
            Check("signing_key", lambda: _has_key(key_ring), required=True),
            Check("postgres", PostgresCheck(connections.database, can_write), required=False),
            Check("redis", lambda: redis_can_write(connections.redis, connections.redis_state), required=False),
            Check("fxa", fxa.ready, required=False),
            *file.checks(),
        ],
        one_of={"store": ("postgres", "redis")},
    )


@asynccontextmanager
async def before_start(settings: AuthSettings, key_ring: KeyRing) -> AsyncIterator[Health]:
    """The checks that work without a running auth."""
    registry = Registry()
    async with AsyncExitStack() as stack:
        connections = await stack.enter_async_context(open_connections(settings, registry))
        config = FxAConfig.from_settings(settings)
        client = FxAClient(connections.session, config.base_url, timeout=config.timeout, clock=time.time)
        keys = key_set(client, config, clock=time.time, metrics=FxAMetrics(registry))
        stack.push_async_callback(keys.close)
        checks = [
            Check("signing_key", lambda: _has_key(key_ring), required=True),
            Check("postgres", PostgresCheck(connections.database, can_write), required=True),
            Check("redis", lambda: _redis_serves(connections), required=True),
            Check("fxa", lambda: _fxa_answers(keys), required=True),
        ]
        if settings.play_packages:
            google = await stack.enter_async_context(
                PlayIntegrity.open(
                    connections.session,
                    settings.play_base_url,
                    credentials_of(settings.play_credentials),
                    metrics=PlayMetrics(registry),
                )
            )
            checks.append(Check("play", lambda: _google_knows_us(google), required=True))
        if settings.litellm_provision_users and settings.master_key is not None:
            admin = LiteLLMAdmin(connections.session, settings.litellm_api_base, settings.master_key.get_secret_value())
            checks.append(Check("litellm", lambda: _litellm_takes_customers(admin), required=True))
        yield Health(checks)


async def _redis_serves(connections: Connections) -> None:
    """:raises CheckFailed, DependencyUnavailable: it takes no writes, or not all that auth does."""
    await redis_can_write(connections.redis, connections.redis_state)
    await rights.check(connections.redis, decisions.SCRIPTS)


async def _has_key(key_ring: KeyRing) -> None:
    """:raises CheckFailed: it has none."""
    if not key_ring.keys:
        raise CheckFailed("there is no signing key")


async def _fxa_answers(keys: KeySet) -> None:
    """:raises CheckFailed: the key set could not be read."""
    await keys.refresh()
    if keys.failure:
        raise CheckFailed(f"FxA's key set can't be read: {keys.failure}")


async def _google_knows_us(google: PlayIntegrity) -> None:
    """:raises CheckFailed: there is no access token for Google's API."""
    try:
        await google.access_token()
    except NoAnswer as error:
        raise CheckFailed(f"Google gives no access token: {error.reason}") from error


async def _litellm_takes_customers(admin: LiteLLMAdmin) -> None:
    """:raises CheckFailed: LiteLLM does not take the master key, or has no database."""
    try:
        await admin.budgets(["mlpa"])
    except LiteLLMError as error:
        raise CheckFailed(f"LiteLLM: {error}") from error
