"""The console's view of the gateways, whatever answers at their address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.auth.admin.console.gateways import Gateways
from shared.telemetry.metrics import Registry

READY = {"status": "ready", "checks": {"redis": {"status": "ok", "required": True, "latency_ms": 1, "error": None}}}
Start = Callable[[web.Response, web.Response], Awaitable[tuple[str, list[str]]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a server with these answers to readiness and metrics; returns its URL, and the requests it gets."""
    async with AsyncExitStack() as stack:

        async def start(readiness: web.Response, metrics: web.Response) -> tuple[str, list[str]]:
            asked: list[str] = []

            async def answer(request: web.Request) -> web.Response:
                asked.append(request.path)
                given = metrics if request.path == "/metrics" else readiness
                headers = {"Location": given.headers["Location"]} if "Location" in given.headers else None
                return web.Response(
                    status=given.status, body=given.body, content_type=given.content_type, headers=headers
                )

            app = web.Application()
            app.router.add_get("/{path:.*}", answer)
            server = TestServer(app)
            await server.start_server()
            stack.push_async_callback(server.close)
            return str(server.make_url("")).rstrip("/"), asked

        yield start


def exposition() -> web.Response:
    """A metrics page as a gateway renders it."""
    registry = Registry()
    counter = registry.counter("chat_request_rejections_total", "Refused.", ("reason", "model", "service_type"))
    for reason, model, times in [("budget_exceeded", "gpt", 2), ("budget_exceeded", 'o"}ther', 3), ("rpm", "gpt", 0)]:
        counter.preset(reason, model, "ai")
        counter.inc(reason, model, "ai", by=times)
    return web.Response(body=registry.render(), content_type="text/plain")


async def test_refusals_are_summed_by_reason_over_all_processes(start: Start) -> None:
    url, asked = await start(web.json_response(READY), exposition())
    other, _ = await start(web.json_response(READY), exposition())
    async with aiohttp.ClientSession() as session:
        gateways = Gateways(session, url, [f"{url}/metrics", f"{other}/metrics"])
        report = await gateways.report()
        assert (report.status, report.checks["redis"]["status"]) == ("ready", "ok")
        assert report.refusals == {"budget_exceeded": 10}
        await gateways.report()
    assert sorted(asked) == ["/health/readiness", "/metrics"]


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(text="<html>", content_type="text/html"),
        web.Response(text="{", content_type="application/json"),
        web.json_response([]),
        web.json_response({"status": "ready"}),
        web.json_response({"status": "ready", "checks": {"redis": "ok"}}),
        web.Response(body=b"\xff", content_type="application/json"),
        web.Response(text="[" * 60_000, content_type="application/json"),
        web.json_response({**READY, "more": "x" * 70_000}),
        web.json_response({"status": "x" * 201, "checks": {}}),
        web.json_response({"status": "ready", "checks": {f"check {number}": {"status": "ok"} for number in range(33)}}),
        web.json_response(READY, status=302, headers={"Location": "/elsewhere"}),
    ],
)
async def test_what_is_not_a_gateway_is_unreachable(start: Start, answer: web.Response) -> None:
    url, _ = await start(answer, web.Response(status=404))
    async with aiohttp.ClientSession() as session:
        report = await Gateways(session, url, []).report()
    assert (report.status, report.checks, report.refusals) == ("unreachable", {}, None)


async def test_where_nobody_listens_nothing_is_known(unused_port: int) -> None:
    async with aiohttp.ClientSession() as session:
        report = await Gateways(session, f"http://127.0.0.1:{unused_port}", []).report()
    assert (report.status, report.refusals) == ("unreachable", None)


async def test_a_gateway_sends_auth_nowhere(start: Start) -> None:
    elsewhere, asked_elsewhere = await start(web.json_response(READY), exposition())
    moved = web.Response(status=307, headers={"Location": f"{elsewhere}/metrics"})
    url, asked = await start(moved, moved)
    async with aiohttp.ClientSession() as session:
        report = await Gateways(session, url, []).report()
    assert (report.status, report.refusals) == ("unreachable", None)
    assert sorted(asked) == ["/health/readiness", "/metrics"]
    assert asked_elsewhere == []


async def test_numbers_without_end_are_no_counts(start: Start) -> None:
    lines = [f'chat_request_rejections_total{{reason="rpm"}} {value}' for value in ("9" * 5000, "9" * 16, "7", "-1")]
    url, _ = await start(web.json_response(READY), web.Response(text="\n".join(lines)))
    async with aiohttp.ClientSession() as session:
        report = await Gateways(session, url, []).report()
    assert report.refusals == {"rpm": 7}


async def test_refusals_are_read_from_prometheus_too(start: Start) -> None:
    """Its page has a time behind each value, and an exponent from a million on."""
    text = "".join(
        f'chat_request_rejections_total{{reason="rpm",instance="{number}"}} {value} 1764119740123\n'
        for number, value in enumerate(("12", "1.234567e+06", "2e+06", "1e+99", "1.5e+1", "3.e+05x"))
    )
    url, _ = await start(web.json_response(READY), web.Response(text=f"# TYPE x untyped\n{text}"))
    async with aiohttp.ClientSession() as session:
        report = await Gateways(session, url, [f"{url}/metrics?match[]=chat_request_rejections_total"]).report()
    assert report.refusals == {"rpm": 12 + 1_234_567 + 2_000_000}
