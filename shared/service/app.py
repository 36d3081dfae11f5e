"""The parts of an app that both services share."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from shared.domain.service_types import ServiceTypes
from shared.service import background, ops
from shared.service.protocol import ServiceSite
from shared.service.proxies import PROXIES, Proxies, ProxyMetrics
from shared.service.serve import DRAIN, Drain, SiteFactory, end_connection
from shared.service.service_types_file import SERVICE_TYPES_FILE, ServiceTypesFile
from shared.service.settings import Settings
from shared.service.web import ErrorRenderer, Frame, OnRefusal
from shared.telemetry.lines import stdout
from shared.telemetry.logs import UserDigest
from shared.telemetry.metrics import Page, Registry
from shared.telemetry.openapi import Answer, Operation, add_routes, document
from shared.telemetry.process import loop_lag, process_metrics
from shared.telemetry.tracing import Tracing

_T = TypeVar("_T")

#: The errors that every operation may answer with.
_COMMON = {
    413: "The body is too large",
    415: "The body is compressed",
    431: "The head of the request is too large",
    500: "The service failed",
}


@dataclass(frozen=True, slots=True)
class Apps:
    """The app of the service's port, and those of the ops port and of the operators' port when these are set."""

    main: web.Application
    ops: web.Application | None
    admin: web.Application | None
    #: How the main app is served, and how the other two are.
    make_site: SiteFactory
    make_ops_site: SiteFactory

    @property
    def all(self) -> tuple[web.Application, ...]:
        return tuple(app for app in (self.main, self.ops, self.admin) if app is not None)

    def put(self, key: web.AppKey[_T], value: _T) -> None:
        """Give every app a collaborator."""
        for app in self.all:
            app[key] = value


@dataclass(frozen=True, slots=True)
class ServiceDescription:
    """A service as its clients see it. ``internal`` operations move to the operators' port, or else to the ops port."""

    name: str
    title: str
    description: str
    operations: Sequence[Operation]
    internal: Sequence[Operation]
    error_body: type
    security_schemes: Mapping[str, Any]
    render_error: ErrorRenderer
    make_site: Callable[[web.AppRunner, socket.socket, Frame, Any], ServiceSite]
    #: Called for each request that is answered with an error.
    on_refusal: OnRefusal | None = None


def build_apps(
    settings: Settings,
    registry: Registry,
    service: ServiceDescription,
    *,
    max_body: int,
    service_types: ServiceTypes,
    admin_port: int | None = None,
) -> Apps:
    """Routes, middleware, probes, metrics, docs. Opens nothing.

    :param admin_port: the port of the internal operations, if they have one of their own.
    :param service_types: kept in step with their file while the main app runs.
    :raises ConfigurationError: tracing is configured but not available.
    """
    secret = settings.log_user_secret.get_secret_value() if settings.log_user_secret else None
    everything = [*ops.OPERATIONS, ops.METRICS_OPERATION, *service.internal, *service.operations]
    probes = [op.path for op in (*ops.OPERATIONS, ops.METRICS_OPERATION)]
    main = web.Application(client_max_size=max_body)
    if settings.otel_exporter_otlp_endpoint:
        Tracing(settings.otel_exporter_otlp_endpoint, service.name, probes).install(main)
    frame = Frame(
        registry,
        service.render_error,
        endpoints=sorted({op.path for op in everything}),
        user_digest=UserDigest(secret),
        service_types=service_types.by_name,
        probes=probes,
        on_refusal=service.on_refusal,
    )
    apps = Apps(
        main,
        web.Application(client_max_size=max_body) if settings.ops_port else None,
        web.Application(client_max_size=max_body) if admin_port else None,
        make_site=lambda runner, sock: service.make_site(runner, sock, frame, settings),
        make_ops_site=lambda runner, sock: ServiceSite(runner, sock, frame, max_body=max_body),
    )
    places = {main: list(service.operations), **{app: [] for app in apps.all[1:]}}
    places[apps.ops or main].append(ops.METRICS_OPERATION)
    places[apps.admin or apps.ops or main].extend(service.internal)
    for app, operations in places.items():
        add_routes(app, [*ops.OPERATIONS, *operations])
        frame.install(app)
    service_types.on_change(frame.make_series)
    file = ServiceTypesFile(settings.service_types, service_types, registry, debug=settings.mlpa_debug)
    apps.put(SERVICE_TYPES_FILE, file)

    async def watch_file(_app: web.Application) -> AsyncIterator[None]:
        async with background.running(registry, service_types=file.run):
            yield

    main.cleanup_ctx.append(watch_file)
    for app in apps.all:
        app.on_response_prepare.append(end_connection)
    ops.build_info(registry, service.name)
    process_metrics(registry)
    main.cleanup_ctx.append(loop_lag(registry))
    registry.read(registry.counter("log_lines_lost_total", "Log lines that could not be written."), lambda: stdout.lost)
    apps.put(ops.METRICS, Page(registry))
    proxy_metrics = ProxyMetrics(registry)
    main[PROXIES] = Proxies(settings.trusted_proxies, settings.trusted_proxy_networks, proxy_metrics)
    for app in apps.all[1:]:  # no proxy is in front of these, whatever is in front of the service's port
        app[PROXIES] = Proxies(0, (), proxy_metrics)
    drain = Drain(delay=settings.drain_delay_seconds, limit=settings.drain_seconds, refuse_new=frame.refuse_new)
    apps.put(DRAIN, drain)
    apps.put(ops.OPENAPI, msgspec.json.encode(_document(service, everything)))
    return apps


def _document(service: ServiceDescription, operations: Sequence[Operation]) -> dict[str, Any]:
    common = {status: Answer(words, service.error_body) for status, words in _COMMON.items()}
    words, schemes = (service.title, ops.VERSION, service.description), service.security_schemes
    return document(*words, operations, security_schemes=schemes, common=common)
