"""An OpenTelemetry collector: takes spans by OTLP over HTTP, and keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer
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
        app = web.Application()
        app.router.add_post("/v1/traces", collector._take)
        async with TestServer(app) as server:
            collector.url = str(server.make_url("/"))
            yield collector

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.received.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            self.services.add(named["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(content_type="application/x-protobuf")
