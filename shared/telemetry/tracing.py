"""Tracing: an OpenTelemetry span of every request, sent by OTLP over HTTP. Off unless an endpoint is set.

The packages are the extra ``tracing``. When tracing is off, only ``traceparent`` runs, which passes a client's own
trace on. The environment variables of the SDK itself (``OTEL_TRACES_SAMPLER``, ``OTEL_EXPORTER_OTLP_HEADERS``,
``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_BSP_*``) work as its documentation says.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from shared.domain.service_types import ConfigurationError
from shared.service.ops import VERSION
from shared.service.web import CLIENT_CLOSED, ERROR, METHODS, REQUEST_ID, SERVICE_TYPE
from shared.telemetry import spans

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_OWN = web.RequestKey("traceparent", str)
#: W3C Trace Context, version 00.
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
#: Seconds that a collector has to accept a batch of spans and, at the end of the process, all remaining ones.
_TIMEOUT = 5


def traceparent(request: web.Request) -> str | None:
    """The ``traceparent`` to send on: of this request's span, or else the client's if it is well-formed."""
    if _OWN in request:
        return request[_OWN]
    given = request.headers.get("traceparent")
    return given if given and _TRACEPARENT.fullmatch(given) else None


class Tracing:
    """The spans of one app. A span has the route's template, never the path; from the client it has only the ids of its
    trace and request.
    """

    def __init__(self, endpoint: str, service: str, probes: Collection[str] = ()) -> None:
        """
        :param probes: routes without spans.
        :param endpoint: the collector's base URL; spans are posted to ``/v1/traces`` below it.
        :raises ConfigurationError: it is no URL, or OpenTelemetry is not installed.
        """
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("OTEL_EXPORTER_OTLP_ENDPOINT must be an http(s) URL")
        try:
            import opentelemetry.exporter.otlp.proto.http.trace_exporter
            import opentelemetry.sdk.trace.export  # noqa: F401 - the start fails here, not the first request
        except ImportError:
            raise ConfigurationError(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: pip install 'mlpa[tracing]'"
            ) from None
        self._endpoint = f"{endpoint.rstrip('/')}/v1/traces"
        self._service = service
        self._probes = frozenset(probes)
        self._tracer: Tracer | None = None

    def install(self, app: web.Application) -> None:
        """Call before any other middleware is added: the span is around all of them."""
        app.middlewares.append(self._middleware)
        app.cleanup_ctx.append(self._running)

    async def _running(self, _app: web.Application) -> AsyncIterator[None]:
        provider = self._provider()
        self._tracer = provider.get_tracer("mlpa", VERSION)
        yield
        await asyncio.to_thread(provider.shutdown)

    def _provider(self) -> TracerProvider:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create(
            {
                "service.name": f"mlpa-{self._service}",
                "service.version": VERSION,
                "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
            }
        )
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=self._endpoint, timeout=_TIMEOUT)))
        return provider

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        from opentelemetry.trace import SpanKind, StatusCode

        assert self._tracer is not None
        resource = request.match_info.route.resource
        endpoint = resource.canonical if resource is not None else "unmatched"
        if endpoint in self._probes:
            return await handler(request)
        method = request.method if request.method in METHODS else "_OTHER"
        span = self._tracer.start_span(
            f"{method} {endpoint}",
            context=_parent(request.headers.get("traceparent")),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": endpoint},
        )
        made = span.get_span_context()
        if made.is_valid:
            request[_OWN] = f"00-{made.trace_id:032x}-{made.span_id:016x}-{made.trace_flags:02x}"
        status = CLIENT_CLOSED
        token = spans.current.set(_Request(self._tracer, span))
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            status = answer.status
            raise
        else:
            status = response.status
            return response
        finally:
            spans.current.reset(token)
            span.set_attribute("http.response.status_code", status)
            span.set_attribute("mlpa.service_type", request.get(SERVICE_TYPE, "none"))
            span.set_attribute("mlpa.request_id", request.get(REQUEST_ID, ""))
            error = request.get(ERROR)
            if status >= 500 or (error and status < 400):  # a stream that broke began with 200
                span.set_status(StatusCode.ERROR)
                span.set_attribute("error.type", error or str(status))
            span.end()


class _Request:
    """A request with its span."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span

    @contextmanager
    def child(self, name: str, system: str) -> Iterator[None]:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        span = self._tracer.start_span(
            name, context=set_span_in_context(self._span), kind=SpanKind.CLIENT, attributes={"peer.service": system}
        )
        try:
            yield
        except BaseException as error:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            span.end()


def _parent(given: str | None) -> Context:
    """The client's span as the parent. ``tracestate`` is left out: it is free text."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    match = _TRACEPARENT.fullmatch(given) if given else None
    if match is None:
        return Context()
    trace_id, span_id, flags = (int(text, 16) for text in match.groups())
    parent = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(parent), Context())
