"""Every answer has the frame's headers, every refusal the service's shape, and none shows secrets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from shared.errors import BadRequest, DependencyUnavailable, MethodNotAllowed, NotFound, PayloadTooLarge, ServiceError
from shared.service.protocol import ServiceSite
from shared.service.serve import listen
from shared.service.web import SECURITY_HEADERS, Frame, from_http
from shared.telemetry.logs import UserDigest
from shared.telemetry.metrics import Registry
from tests.support.waiting import until

CANARY = "canary-3c1b7e"
ERRORS: dict[str, Exception] = {
    "refused": BadRequest("Not so."),
    "busy": ServiceError(retry_after=1.2, headers={"X-More": "1"}),
    "unavailable": DependencyUnavailable("postgres", retry_after=7),
    "conflict": web.HTTPConflict(text=CANARY),
    "gateway": web.HTTPBadGateway(text=CANARY),
    "broken": ValueError(CANARY),
    "lost": ConnectionResetError(CANARY),
    "moved": web.HTTPFound("/elsewhere"),
}


async def answer(request: web.Request) -> web.Response:
    if error := ERRORS.get(request.match_info["what"]):
        raise error
    return web.Response(text=str(len(await request.read())), content_type="text/html")


async def probe(_request: web.Request) -> web.Response:
    return web.Response()


async def public(_request: web.Request) -> web.Response:
    return web.Response(headers={"Cache-Control": "max-age=60"})


def render(_request: web.Request | None, error: ServiceError) -> web.Response:
    body = {"code": error.code, "message": error.message}
    return web.json_response(body, status=error.status, headers=error.headers)


class Served:
    def __init__(self, port: int, registry: Registry, frame: Frame, session: aiohttp.ClientSession) -> None:
        self.port, self.registry, self.frame, self._session = port, registry, frame, session

    async def ask(self, path: str, method: str = "POST", **options: Any) -> tuple[int, Any, str]:
        """Status, headers and text."""
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self._session.request(method, url, allow_redirects=False, **options) as response:
            return response.status, response.headers, await response.text()

    async def raw(self, data: bytes) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        text = (await reader.read()).decode()
        writer.close()
        return text

    def has(self, series: str) -> bool:
        return series in self.registry.render().decode().splitlines()

    async def until(self, series: str) -> None:
        await until(lambda: self.has(series))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    registry = Registry()
    frame = Frame(
        registry, render, endpoints=["/{what}", "/probe", "/public"], user_digest=UserDigest(None), probes=["/probe"]
    )
    app = web.Application(client_max_size=1000)
    app.router.add_get("/probe", probe)
    app.router.add_get("/public", public)
    app.router.add_post("/{what}", answer)
    frame.install(app)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    sock = listen("127.0.0.1", 0)
    await ServiceSite(runner, sock, frame).start()
    async with aiohttp.ClientSession() as session:
        yield Served(sock.getsockname()[1], registry, frame, session)
    await runner.cleanup()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/refused", 400, "invalid_request"),
        ("/busy", 500, "server_error"),
        ("/unavailable", 503, "temporarily_unavailable"),
        ("/conflict", 400, "invalid_request"),
        ("/gateway", 500, "server_error"),
        ("/broken", 500, "server_error"),
        ("/lost", 500, "server_error"),
        ("/no/such", 404, "not_found"),
    ],
)
async def test_a_refusal_has_the_services_shape_and_nothing_of_its_cause(
    served: Served, path: str, status: int, code: str
) -> None:
    answered, headers, text = await served.ask(path)
    assert (answered, json.loads(text)["code"]) == (status, code)
    assert CANARY not in text + str(headers)
    assert SECURITY_HEADERS.items() <= dict(headers).items()
    assert served.has(f'response_status_codes_total{{status_code="{status}"}} 1')


@pytest.mark.parametrize(
    ("path", "endpoint", "outcome"),
    [
        ("/fine", "/{what}", "success"),
        ("/refused", "/{what}", "refused"),
        ("/no/such", "unmatched", "refused"),
        ("/broken", "/{what}", "failure"),
        ("/unavailable", "/{what}", "failure"),
    ],
)
async def test_an_answer_counts_by_how_it_ended(served: Served, path: str, endpoint: str, outcome: str) -> None:
    await served.ask(path)
    assert served.has(f'answers_total{{endpoint="{endpoint}",outcome="{outcome}"}} 1')


async def test_a_request_that_a_drain_refuses_counts_as_a_failure(served: Served) -> None:
    served.frame.refuse_new()
    await served.ask("/fine")
    assert served.has('answers_total{endpoint="/{what}",outcome="failure"} 1')


async def test_a_client_that_leaves_before_its_answer_counts_as_one(served: Served) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"POST /fine HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
    await served.until('in_progress_requests{endpoint="/{what}"} 1')
    writer.close()
    await served.until('answers_total{endpoint="/{what}",outcome="abort"} 1')


@pytest.mark.parametrize("path", ["/fine", "/refused", "/broken", "/no/such"])
async def test_an_answer_is_not_to_be_kept(served: Served, path: str) -> None:
    assert (await served.ask(path))[1].getall("Cache-Control") == ["no-store"]


async def test_an_answer_may_be_kept_if_its_handler_says_so(served: Served) -> None:
    assert (await served.ask("/public", "GET"))[1].getall("Cache-Control") == ["max-age=60"]


async def test_the_answer_to_bytes_that_are_no_request_is_not_to_be_kept(served: Served) -> None:
    assert "Cache-Control: no-store" in await served.raw(b"\x00\r\n\r\n")


async def test_a_process_that_ends_answers_probes_alone(served: Served) -> None:
    served.frame.refuse_new()
    for path in ("/fine", "/no/such"):
        status, headers, text = await served.ask(path)
        assert (status, json.loads(text)["code"], headers["Retry-After"]) == (503, "temporarily_unavailable", "1")
    assert (await served.ask("/probe", "GET"))[0] == 200


async def test_what_an_error_says_of_itself_is_kept(served: Served) -> None:
    assert json.loads((await served.ask("/refused"))[2])["message"] == "Not so."
    _, headers, _ = await served.ask("/busy")
    assert (headers["Retry-After"], headers["X-More"]) == ("2", "1")
    _, headers, _ = await served.ask("/unavailable")
    assert headers["Retry-After"] == "7"
    assert served.has('dependency_errors_total{dependency="postgres"} 1')


async def test_another_method_is_told_which_there_are(served: Served) -> None:
    status, headers, text = await served.ask("/fine", "DELETE")
    assert (status, headers["Allow"], json.loads(text)["code"]) == (405, "POST", "method_not_allowed")


async def test_a_redirect_is_no_error(served: Served) -> None:
    status, headers, _ = await served.ask("/moved")
    assert (status, headers["Location"]) == (302, "/elsewhere")


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused_announced_or_not(served: Served, announced: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 1001

    status, _, text = await served.ask("/fine", data=b"x" * 1001 if announced else pieces())
    assert (status, json.loads(text)["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("data", [b"\x00\x01\x02\r\n\r\n", f"{CANARY}\r\n\r\n".encode(), b"GET / HTTP/9.9\r\n\r\n"])
async def test_what_is_no_http_is_refused_in_the_same_shape(served: Served, data: bytes) -> None:
    head, _, body = (await served.raw(data)).partition("\r\n\r\n")
    assert head.split()[1] == "400"
    assert json.loads(body)["code"] == "invalid_request"
    assert CANARY not in head + body
    assert "X-Request-ID" in head
    assert served.has('requests_total{endpoint="unmatched",method="other",service_type="none"} 1')


@pytest.mark.parametrize(("given", "kept"), [("a.b-C_1", True), ("a b", False), ("x" * 129, False), ("", False)])
async def test_a_request_keeps_its_id_when_that_is_a_plain_one(served: Served, given: str, kept: bool) -> None:
    _, headers, _ = await served.ask("/fine", headers={"X-Request-ID": given})
    assert (headers["X-Request-ID"] == given) is kept
    assert headers["X-Request-ID"]


async def test_a_page_has_a_policy_of_its_own(served: Served) -> None:
    _, headers, _ = await served.ask("/fine")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "Server" not in headers


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (web.HTTPNotFound(), NotFound),
        (web.HTTPRequestEntityTooLarge(1, 2), PayloadTooLarge),
        (web.HTTPMethodNotAllowed("PUT", ["POST", "GET"]), MethodNotAllowed),
        (web.HTTPExpectationFailed(), BadRequest),
        (web.HTTPInternalServerError(), ServiceError),
    ],
)
def test_aiohttps_own_refusals_become_ours(error: web.HTTPException, kind: type[ServiceError]) -> None:
    assert type(from_http(error)) is kind
    if isinstance(error, web.HTTPMethodNotAllowed):
        assert from_http(error).headers["Allow"] == "GET, POST"
