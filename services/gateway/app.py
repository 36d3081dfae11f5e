"""The gateway, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import aiohttp
from aiohttp import web

from services.gateway import client_keys, client_metrics, dialects, keys
from services.gateway.budget import views as budget_views
from services.gateway.budget.services import Budgets
from services.gateway.catalogue import operators as catalogue_views, views as model_views
from services.gateway.catalogue.services import Catalogue
from services.gateway.chat.operation import CHAT
from services.gateway.client_keys import CLIENT_KEYS
from services.gateway.dialects import DIALECTS, OPENAI
from services.gateway.embeddings import EMBEDDINGS
from services.gateway.error_body import ErrorBody
from services.gateway.firefox import metrics as firefox_metrics
from services.gateway.firefox.credentials import CREDENTIALS, UNVERIFIED_BYTES, Credentials
from services.gateway.firefox.dialect import FIREFOX
from services.gateway.firefox.exchanges import Exchanges
from services.gateway.health import health, upstream_config
from services.gateway.ledger.refusals import RefusalLog
from services.gateway.relay.bodies import Bodies
from services.gateway.relay.collaborators import COLLABORATORS, Collaborators
from services.gateway.relay.connection import RelaySite
from services.gateway.relay.metrics import RelayMetrics
from services.gateway.relay.open_requests import OpenRequests
from services.gateway.relay.views import count_refusal
from services.gateway.search import SEARCH
from services.gateway.settings import GatewaySettings
from services.gateway.tokens import keyset
from services.gateway.tokens.bearer import VERIFIER
from services.gateway.tokens.verifier import TokenVerifier
from services.gateway.upstream.client import LiteLLM
from shared.domain.service_types import ServiceTypes
from shared.errors import NotFound, ServiceError
from shared.service import background
from shared.service.app import Apps, ServiceDescription, build_apps
from shared.service.ops import HEALTH
from shared.service.serve import DRAIN
from shared.service.service_types_file import SERVICE_TYPES_FILE
from shared.stores.postgres import Database
from shared.telemetry.metrics import Registry

#: The operations that are charged.
_PAID = [CHAT, EMBEDDINGS, SEARCH]
_OPERATIONS = [*(one.route for one in _PAID), *model_views.OPERATIONS, *budget_views.OPERATIONS]
#: Worded so that no client takes it for an unknown model.
_SERVED = f"Unknown path. This gateway serves {', '.join(f'{one.method} {one.path}' for one in _OPERATIONS)}."


def _render_error(request: web.Request | None, error: ServiceError) -> web.Response:
    return dialects.of(request).error_response(NotFound(_SERVED) if isinstance(error, NotFound) else error)


DESCRIPTION = ServiceDescription(
    name="gateway",
    title="MLPA gateway",
    description="Relays chat completions, embeddings and searches under a budget per user. The official OpenAI SDKs "
    "work unmodified, with `base_url=<gateway>/v1` and an access token of auth as `api_key`.",
    operations=_OPERATIONS,
    internal=catalogue_views.OPERATIONS,
    error_body=ErrorBody,
    security_schemes={
        "access_token": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "From auth's /token.",
        }
    },
    render_error=_render_error,
    on_refusal=count_refusal,
    make_site=lambda runner, sock, frame, settings: RelaySite(
        runner, sock, frame, max_body=settings.max_request_size_bytes
    ),
)


def build_app(settings: GatewaySettings, *, registry: Registry | None = None) -> Apps:
    """The apps of the gateway; resources open when they start and close when they end.

    :raises ConfigurationError: a file named in the settings can't be used.
    """
    registry = registry or Registry()
    service_types = settings.load_service_types()
    hidden = settings.ops_port is None and not settings.mlpa_debug  # prices are not public
    apps = build_apps(
        settings,
        registry,
        replace(DESCRIPTION, internal=[]) if hidden else DESCRIPTION,
        max_body=settings.max_request_size_bytes,
        service_types=service_types,
    )

    async def resources(_app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await _open(stack, apps, settings, service_types, registry)
            yield

    apps.main.cleanup_ctx.append(resources)
    apps.put(DIALECTS, (FIREFOX, OPENAI) if settings.firefox_clients else (OPENAI,))
    apps.put(CLIENT_KEYS, client_keys.configured(settings, service_types))
    if settings.firefox_clients:
        apps.main.middlewares.insert(0, firefox_metrics.counting(registry))
    if settings.client_metrics:
        paths = [one.route.path for one in _PAID]
        apps.main.middlewares.insert(0, client_metrics.counting(registry, paths, settings.client_metrics_series))
    return apps


async def _open(
    stack: AsyncExitStack, apps: Apps, settings: GatewaySettings, service_types: ServiceTypes, registry: Registry
) -> None:
    database = await stack.enter_async_context(
        Database.connect(settings.database_url.get_secret_value(), max_size=settings.database_pool_size)
    )
    litellm = await stack.enter_async_context(LiteLLM.open(upstream_config(settings), registry))
    metrics = RelayMetrics(registry)
    operations = {one.route.path: one.make(settings, registry) for one in _PAID}

    def make_series(models: tuple[str, ...]) -> None:
        rows = service_types.by_name.values()
        metrics.preset(models, rows)
        for operation in operations.values():
            operation.metrics.preset(models, rows)

    make_series(())  # LiteLLM may be down
    every = settings.model_info_seconds
    catalogue = await stack.enter_async_context(
        Catalogue.open(litellm.model_info, service_types, registry, every=every, on_change=make_series)
    )
    budgets = await stack.enter_async_context(
        Budgets.open(
            settings.redis_url.get_secret_value(),
            database,
            service_types,
            registry,
            outbox_limit=settings.max_outbox_rows,
        )
    )
    session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
    key_set = keyset.key_set(session, registry, issuer=settings.mlpa_issuer, jwks_url=settings.mlpa_jwks_url)
    verifier = TokenVerifier(key_set, service_types, registry, issuer=settings.mlpa_issuer)
    stack.push_async_callback(key_set.close)
    await stack.enter_async_context(background.running(registry, key_set=key_set.keep_fresh))

    refusals = RefusalLog(database, registry)
    await stack.enter_async_context(refusals.running(registry))
    open_requests = OpenRequests(settings.max_open_requests)
    gauge = registry.gauge("open_requests_limit", "Requests that may be open in this process; 0 for no limit.")
    gauge.set(settings.max_open_requests)
    service_types.on_change(lambda: make_series(catalogue.names()))
    apps.main[DRAIN].finish = open_requests.finish
    apps.put(VERIFIER, verifier)
    apps.put(keys.BUDGETS, budgets)
    apps.put(keys.CATALOGUE, catalogue)
    apps.put(keys.SERVICE_TYPES, service_types)
    limit = settings.max_request_size_bytes
    apps.put(
        COLLABORATORS,
        Collaborators(
            operations, settings, catalogue, budgets, litellm, metrics, open_requests, Bodies(limit), refusals
        ),
    )
    if settings.firefox_clients:
        exchanges = await stack.enter_async_context(Exchanges.open(settings, registry))
        bodies = Bodies(limit, UNVERIFIED_BYTES)
        apps.put(CREDENTIALS, Credentials(exchanges, service_types, bodies, issuer=settings.mlpa_issuer))
    apps.put(HEALTH, health(budgets, database, key_set, litellm, apps.main[SERVICE_TYPES_FILE]))
