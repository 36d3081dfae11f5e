"""Error reports: that they come, and that nothing which a client sent comes with them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sentry_sdk
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from shared.errors import ServiceError
from shared.service import background
from shared.service.ops import VERSION
from shared.service.web import Frame
from shared.telemetry import logs
from shared.telemetry.logs import UserDigest
from shared.telemetry.metrics import Registry
from shared.telemetry.reports import report_errors
from tests.doubles.sentry import Sentry

#: One for each place that a report could take them from.
CANARIES = {name: f"canary-{name}-4b81ce" for name in ("body", "header", "cookie", "query", "path", "local", "error")}


async def broken(request: web.Request) -> web.Response:
    body = await request.text()
    local = "-".join(["canary", "local", "4b81ce"])
    try:
        return web.Response(text=str(int(body)))  # the error's words quote the body
    except ValueError as error:
        raise RuntimeError("-".join(["canary", "error", "4b81ce"]), local) from error


def render(_request: web.Request | None, error: ServiceError) -> web.Response:
    return web.json_response({"error": error.code}, status=error.status)


@pytest.fixture
async def sentry() -> AsyncIterator[Sentry]:
    async with Sentry.open() as double:
        report_errors(double.dsn, "auth")
        yield double
        await asyncio.to_thread(sentry_sdk.get_client().close)
        sentry_sdk.init()  # later tests report nowhere


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    app = web.Application()
    app.router.add_post("/{name}", broken)
    Frame(Registry(), render, endpoints=["/{name}"], user_digest=UserDigest(None)).install(app)
    async with TestClient(TestServer(app)) as opened:
        yield opened


async def fail(client: TestClient[Any, Any], **more: str) -> None:
    headers = {**more, "Authorization": f"Bearer {CANARIES['header']}", "Cookie": f"session={CANARIES['cookie']}"}
    url = f"/{CANARIES['path']}?token={CANARIES['query']}"
    async with client.post(url, data=CANARIES["body"], headers=headers) as response:
        assert (response.status, await response.json()) == (500, {"error": "server_error"})
    await asyncio.to_thread(sentry_sdk.flush, 5)


async def test_a_fault_is_reported_by_its_kind_and_place(sentry: Sentry, client: TestClient[Any, Any]) -> None:
    await fail(client)
    event = sentry.event()
    assert event["release"].startswith("mlpa-auth@")
    kinds = [value["type"] for value in event["exception"]["values"]]
    assert kinds == ["ValueError", "RuntimeError"]
    frame = event["exception"]["values"][-1]["stacktrace"]["frames"][-1]
    assert frame["function"] == "broken"
    assert "raise RuntimeError" in frame["context_line"]


async def test_a_report_has_the_requests_id(sentry: Sentry, client: TestClient[Any, Any]) -> None:
    await fail(client, **{"X-Request-ID": "complaint-1"})
    assert sentry.event()["tags"] == {"request_id": "complaint-1"}


def test_a_release_names_the_commit_that_runs() -> None:
    program = (
        "import sentry_sdk; from shared.telemetry.reports import report_errors;"
        "report_errors('http://public@127.0.0.1:1/1', 'auth'); print(sentry_sdk.get_client().options['release'])"
    )
    for commit, end in (("0a1b2c3", "+0a1b2c3"), ("", "")):
        environment = {**os.environ, "MLPA_COMMIT": commit}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == f"mlpa-auth@{VERSION}{end}"


async def test_a_fault_of_background_work_is_reported_once_with_its_loop(sentry: Sentry) -> None:
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        raise ValueError(CANARIES["local"])

    async with background.running(Registry(), pause=0.001, usage=loop):
        async with asyncio.timeout(5):
            while runs < 5:  # noqa: ASYNC110 - it is the loop that is waited for
                await asyncio.sleep(0.001)
    await asyncio.to_thread(sentry_sdk.flush, 5)
    event = sentry.event()
    assert event["tags"] == {"loop": "usage"}
    assert event["exception"]["values"][-1]["type"] == "ValueError"
    assert b"canary" not in b"".join(sentry.envelopes)


async def test_a_fault_of_a_task_that_nothing_awaits_is_reported(sentry: Sentry) -> None:
    context = {"message": "Task exception was never retrieved", "exception": KeyError(CANARIES["body"])}
    logs.loop_error(asyncio.get_running_loop(), context)
    await asyncio.to_thread(sentry_sdk.flush, 5)
    assert sentry.event()["exception"]["values"][-1]["type"] == "KeyError"
    assert b"canary" not in b"".join(sentry.envelopes)


async def test_nothing_that_a_client_sent_is_reported(sentry: Sentry, client: TestClient[Any, Any]) -> None:
    await fail(client)
    seen = b"".join(sentry.envelopes).decode() + "".join(sentry.headers)
    assert sentry.envelopes
    assert [name for name, canary in CANARIES.items() if canary in seen] == []


async def test_what_a_developer_adds_to_a_report_is_dropped_too(sentry: Sentry) -> None:
    sentry_sdk.set_user({"id": CANARIES["header"]})
    sentry_sdk.set_tag("token", CANARIES["header"])
    sentry_sdk.set_context("request", {"body": CANARIES["body"]})
    sentry_sdk.add_breadcrumb(message=CANARIES["local"])
    sentry_sdk.capture_message(CANARIES["error"])
    await asyncio.to_thread(sentry_sdk.flush, 5)
    assert sentry.envelopes
    assert b"canary" not in b"".join(sentry.envelopes)
