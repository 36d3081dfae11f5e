"""An OpenTelemetry collector: takes spans by OTLP over HTTP, and keeps them.

What it imitates, with the source ("OTLP": open-telemetry/opentelemetry-proto, docs/specification.md, "OTLP/HTTP"):

    POST /v1/traces: an ExportTraceServiceRequest; 200     OTLP, Request, Full Success
    with an ExportTraceServiceResponse, here an empty one
    20 MiB at most, gzip or not                            OTLP, Request
    415 for another type than application/x-protobuf,      open-telemetry/opentelemetry-collector,
    400 for a body that cannot be decoded                  receiver/otlpreceiver/otlphttp.go

Where it differs on purpose: it takes no JSON, and its errors have no text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    def __init__(self) -> None:
        self.spans: list[Span] = []
        #: Everything that came, as it came.
        self.received: list[bytes] = []
        self.services: set[str] = set()
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Collector]:
        collector = cls()
        app = web.Application(client_max_size=20 * 2**20)
        app.router.add_post("/v1/traces", collector._take)
        async with TestServer(app) as server:
            collector.url = str(server.make_url("/"))
            yield collector

    async def _take(self, request: web.Request) -> web.Response:
        if request.content_type != "application/x-protobuf":
            return web.Response(status=415)
        body = await request.read()
        try:
            spans = ExportTraceServiceRequest.FromString(body)
        except DecodeError:
            return web.Response(status=400)
        self.received.append(body)
        for resource in spans.resource_spans:
            named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            self.services.add(named["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(content_type="application/x-protobuf")
