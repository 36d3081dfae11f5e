"""Tracing: the content of spans, the way of their context, and nothing of it when off."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from services.gateway.budget.scripts import SCRIPTS, BudgetScripts
from services.gateway.redis.executor import Executor
from shared.domain.service_types import ConfigurationError
from shared.errors import NotFound
from shared.service.app import ServiceDescription, build_apps
from shared.service.protocol import ServiceSite
from shared.service.settings import Settings
from shared.service.web import SERVICE_TYPE
from shared.stores.postgres import Database, Query
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from shared.telemetry.openapi import Answer, Operation
from shared.telemetry.tracing import Tracing, traceparent
from tests.doubles.otlp import Collector
from tests.services.gateway.budget.support import principal
from tests.support.service_types import development

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{PARENT}-01"
CANARY = "canary-7d1f0a"


async def answer(request: web.Request) -> web.Response:
    await request.read()
    what = request.match_info["what"]
    if what == "missing":
        raise NotFound
    if what == "broken":
        raise ValueError(CANARY)
    request[SERVICE_TYPE] = "ai"
    return web.Response(text=traceparent(request) or "none")


def description() -> ServiceDescription:
    return ServiceDescription(
        name="gateway",
        title="",
        description="",
        operations=[Operation("POST", "/things/{what}", answer, "", {200: Answer("")})],
        internal=[],
        error_body=dict,
        security_schemes={},
        render_error=lambda _request, error: web.Response(status=error.status, text=error.code),
        make_site=lambda runner, sock, frame, _settings: ServiceSite(runner, sock, frame),
    )


@asynccontextmanager
async def service(endpoint: str | None) -> AsyncIterator[TestClient[Any, Any]]:
    settings = Settings(_env_file=None, otel_exporter_otlp_endpoint=endpoint)
    apps = build_apps(settings, Registry(), description(), max_body=1000, service_types=development())
    async with TestClient(TestServer(apps.main)) as client:
        yield client


async def ask(client: TestClient[Any, Any], what: str, **headers: str) -> tuple[int, str]:
    secrets = {"Authorization": f"Bearer {CANARY}", "purpose": CANARY, "tracestate": f"x={CANARY}"}
    async with client.post(f"/things/{what}?q={CANARY}", data=CANARY, headers={**secrets, **headers}) as response:
        return response.status, await response.text()


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in span.attributes}


async def test_a_request_becomes_one_server_span_with_template_status_and_service_type() -> None:
    async with Collector.open() as collector:
        async with service(collector.url) as client:
            assert (await ask(client, "x", **{"X-Request-ID": "r-1"}))[0] == 200
        (span,) = collector.spans  # the end of the service sends what is left
        assert collector.services == {"mlpa-gateway"}
    assert (span.name, span.kind) == ("POST /things/{what}", Span.SPAN_KIND_SERVER)
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/things/{what}",
        "http.response.status_code": 200,
        "mlpa.service_type": "ai",
        "mlpa.request_id": "r-1",
    }


async def test_the_clients_trace_goes_on_through_the_span() -> None:
    async with Collector.open() as collector:
        async with service(collector.url) as client:
            _, sent_on = await ask(client, "x", traceparent=GIVEN)
        (span,) = collector.spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert sent_on == f"00-{TRACE}-{span.span_id.hex()}-01"


@pytest.mark.parametrize(
    "given", ["", "x", f"00-{TRACE}-{PARENT}", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"]
)
async def test_a_malformed_traceparent_begins_a_new_trace(given: str) -> None:
    async with Collector.open() as collector:
        async with service(collector.url) as client:
            _, sent_on = await ask(client, "x", traceparent=given)
        (span,) = collector.spans
    assert span.parent_span_id == b""
    assert span.trace_id.hex() not in ("0" * 32, TRACE)
    assert sent_on.split("-")[1:3] == [span.trace_id.hex(), span.span_id.hex()]


async def test_refusals_and_faults_have_spans_with_their_status() -> None:
    async with Collector.open() as collector:
        async with service(collector.url) as client:
            seen = [(await ask(client, what))[0] for what in ("missing", "broken", "x/y")]
        spans = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert seen == [404, 500, 404]
    assert [attributes(span)["http.response.status_code"] for span in spans] == seen
    assert [span.status.code == Status.STATUS_CODE_ERROR for span in spans] == [False, True, False]
    assert [span.name for span in spans][-1] == "POST unmatched"


async def test_probes_and_scrapes_have_no_spans() -> None:
    async with Collector.open() as collector:
        async with service(collector.url) as client:
            for path in ("/health/liveness", "/__lbheartbeat__", "/metrics", "/__version__"):
                assert (await client.get(path)).status == 200
            await ask(client, "x")
        assert [span.name for span in collector.spans] == ["POST /things/{what}"]


async def test_questions_to_redis_and_postgresql_are_spans_below_the_request(postgres_url: str, redis_url: str) -> None:
    redis = connect(redis_url)
    async with Collector.open() as collector, Database.connect(postgres_url) as database:

        async def asks(request: web.Request) -> web.Response:
            await redis.get("x")
            async with redis.pipeline(transaction=False) as pipeline:
                await pipeline.set("x", CANARY).execute()
            await database.fetch(Query.text("select :given as given"), given=CANARY)
            async with database.transaction() as transaction:
                await transaction.execute(Query.text("delete from users where user_id = :given"), given=CANARY)
                with contextlib.suppress(Exception):
                    await transaction.fetch(Query.text("SELECT * FROM nowhere"))
            return web.Response()

        app = web.Application()
        app.router.add_get("/asks", asks)
        Tracing(collector.url, "auth").install(app)
        async with TestClient(TestServer(app)) as client:
            assert (await client.get("/asks")).status == 200
        await redis.aclose()
        *asked, server = collector.spans
        assert [span.name for span in asked] == [
            "redis GET",
            "redis pipeline",
            "postgresql select",
            "postgresql delete",
            "postgresql select",
        ]
        assert {(span.parent_span_id, span.kind) for span in asked} == {(server.span_id, Span.SPAN_KIND_CLIENT)}
        assert [attributes(span)["peer.service"] for span in asked] == ["redis"] * 2 + ["postgresql"] * 3
        errors = [span.status.code == Status.STATUS_CODE_ERROR for span in (*asked, server)]
        assert errors == [False] * 4 + [True, False]
        assert CANARY.encode() not in b"".join(collector.received)


async def test_scripts_of_budgets_are_spans_by_their_names(redis_url: str) -> None:
    async with Collector.open() as collector, Executor.open(redis_url, SCRIPTS) as executor:
        scripts = BudgetScripts(executor, 30)

        async def asks(_request: web.Request) -> web.Response:
            return web.json_response([word.decode() for word in await scripts.state(principal())])

        app = web.Application()
        app.router.add_get("/asks", asks)
        Tracing(collector.url, "gateway").install(app)
        async with TestClient(TestServer(app)) as client:
            assert await (await client.get("/asks")).json() == ["load"]
        assert [span.name for span in collector.spans] == ["redis state", "GET /asks"]


async def test_nothing_that_a_client_wrote_reaches_the_collector() -> None:
    async with Collector.open() as collector:
        async with service(collector.url) as client:
            for what in ("x", "missing", "broken", CANARY):
                await ask(client, what, traceparent=GIVEN)
            await client.session.request("PROPFIND", client.make_url(f"/{CANARY}"))
        assert len(collector.spans) == 5
        assert CANARY.encode() not in b"".join(collector.received)
        assert b"PROPFIND" not in b"".join(collector.received)


async def test_a_collector_that_is_away_delays_neither_answers_nor_the_end(unused_port: int) -> None:
    async with asyncio.timeout(10):
        async with service(f"http://127.0.0.1:{unused_port}") as client:
            assert (await ask(client, "x"))[0] == 200


async def test_off_there_is_no_middleware_and_a_good_traceparent_still_passes() -> None:
    settings = Settings(_env_file=None)
    apps = build_apps(settings, Registry(), description(), max_body=1000, service_types=development())
    assert len(apps.main.middlewares) == 1  # the frame
    async with service(None) as client:
        assert await ask(client, "x", traceparent=GIVEN) == (200, GIVEN)
        assert await ask(client, "x", traceparent=GIVEN + CANARY) == (200, "none")


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://"])
def test_an_endpoint_that_is_no_url_stops_the_start(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        Tracing(endpoint, "gateway")


def test_without_the_packages_the_start_fails_and_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from shared.telemetry.tracing import Tracing\n"
        "Tracing('http://127.0.0.1:4318', 'gateway')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "ConfigurationError" in ended.stderr
    assert "mlpa[tracing]" in ended.stderr


def test_off_it_imports_nothing_of_opentelemetry() -> None:
    program = "import sys, shared.telemetry.tracing; print([n for n in sys.modules if 'opentelemetry' in n])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
