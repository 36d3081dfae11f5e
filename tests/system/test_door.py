"""Both services behind the real nginx, with the shipped configuration."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import cbor2
import pytest
from aiohttp import web
from jose import jwt
from yarl import URL

from services.local.device import Device
from tests.doubles.litellm import chunk, event
from tests.support.serving import serve
from tests.support.waiting import until
from tests.system.clients import Caller, Seen
from tests.system.harness import System
from tests.system.nginx import NGINX, Door

pytestmark = pytest.mark.skipif(NGINX is None, reason="Debian's package nginx is not installed")

KIB = 1024


@pytest.fixture(scope="module")
def door(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with Door(tmp_path_factory.mktemp("nginx") / "door", system) as door:
        yield door


async def enrol(caller: Caller, url: str, device: Device, header_bytes: int) -> Seen:
    """As Firefox for iOS does it: the claims in a JWT, whose size is that of a real device's."""
    parameters = {"key_id_b64": device.key_id_b64}
    challenge = (await caller.ask("GET", f"{url}/verify/challenge", params=parameters)).json()["challenge"]
    claims = {
        "key_id_b64": device.key_id_b64,
        "challenge_b64": base64.b64encode(challenge.encode()).decode(),
        "bundle_id": device.bundle_id,
    }
    attestation = cbor2.loads(device.attest(challenge))
    header = ""
    while len(header) < header_bytes:
        # A real receipt is what makes it so long; no signature covers it here
        attestation["attStmt"]["receipt"] += b"\x30" * 64
        encoded = base64.b64encode(cbor2.dumps(attestation)).decode()
        header = f"Bearer {jwt.encode({**claims, 'attestation_obj_b64': encoded}, 'thrown away', algorithm='HS256')}"
    return await caller.ask("POST", f"{url}/verify/attest", headers={"Authorization": header})


async def test_a_header_of_11_kb_enrols_a_device(door: Door, caller: Caller) -> None:
    device = caller.device()
    seen = await enrol(caller, door.url, device, 11 * KIB)
    assert (seen.status, seen.body) == (201, b'{"status": "success"}')
    assert (await caller.exchange_device(device)).status == 200


async def test_nginx_as_it_comes_refuses_that_header(system: System, caller: Caller, tmp_path: Path) -> None:
    with Door(tmp_path / "door", system, without="large_client_header_buffers") as plain:
        seen = await enrol(caller, plain.url, caller.device(), 11 * KIB)
    assert seen.status == 400
    assert b"Request Header Or Cookie Too Large" in seen.body


async def test_a_header_of_39_kib_reaches_auth(door: Door, caller: Caller) -> None:
    seen = await caller.ask("POST", f"{door.url}/verify/attest", headers={"Authorization": "Bearer " + "x" * 39 * KIB})
    assert "X-Request-ID" in seen.headers


@pytest.mark.parametrize(
    ("method", "path", "served_by"),
    [
        ("GET", "/verify/challenge", "auth"),
        ("POST", "/verify/attest", "auth"),
        ("POST", "/token", "auth"),
        ("POST", "/revoke", "auth"),
        ("GET", "/.well-known/jwks.json", "auth"),
        ("GET", "/.well-known/oauth-authorization-server", "auth"),
        ("POST", "/fxa/events", "auth"),
        ("POST", "/v1/chat/completions", "gateway"),
        ("GET", "/v1/models", "gateway"),
        ("GET", "/v1/budget", "gateway"),
        ("GET", "/__lbheartbeat__", "gateway"),
        ("GET", "/__heartbeat__", "gateway"),
        ("GET", "/__version__", "gateway"),
        ("GET", "/metrics", None),
        ("GET", "/user", None),
        ("GET", "/admin/", None),
        ("GET", "/health/readiness", None),
        ("GET", "/", None),
    ],
)
async def test_each_path_leads_to_its_service(
    door: Door, caller: Caller, method: str, path: str, served_by: str | None
) -> None:
    seen = await caller.ask(method, door.url + path)
    if served_by is None:
        assert (seen.status, seen.code) == (404, "not_found")
        assert "X-Request-ID" not in seen.headers
        return
    other = caller.system.gateway_url if served_by == "auth" else caller.system.auth_url
    direct = await caller.ask(method, caller.system.url(f"{served_by}-1") + path)
    assert (seen.status, seen.body.partition(b"latency")[0]) == (direct.status, direct.body.partition(b"latency")[0])
    if not path.startswith("/__"):
        assert seen.body != (await caller.ask(method, other + path)).body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/user/..%2ftoken"),
        ("POST", "/user/..%2Fverify%2fx/block"),
        ("GET", "/user/.%2E%2fverify/x"),
        ("GET", "/admin/users/..%2f..%2fverify%2fx"),
        ("GET", "/admin/users/%2e%2e%2f..%2ffxa%2f"),
        ("GET", "/metrics/../v1/models"),
        ("GET", "/metrics/../token?x=/"),
        ("GET", "/verify/x/.."),
        ("GET", "/verify/."),
    ],
)
async def test_no_path_is_one_thing_to_nginx_and_another_to_a_service(
    door: Door, caller: Caller, method: str, path: str
) -> None:
    seen = await caller.ask(method, URL(door.url + path, encoded=True))
    assert (seen.status, seen.code) == (404, "not_found")
    assert "X-Request-ID" not in seen.headers


@pytest.mark.parametrize("path", ["/v1/models/a%2Fb..c", "/v1/models?x=/../", "/.well-known/jwks.json"])
async def test_dots_that_are_no_segments_pass(door: Door, caller: Caller, path: str) -> None:
    assert "X-Request-ID" in (await caller.ask("GET", URL(door.url + path, encoded=True))).headers


async def test_what_nobody_outside_may_say_is_taken_out_and_other_fields_pass(
    door: Door, caller: Caller, tmp_path: Path
) -> None:
    async with mirror() as (address, heads):
        mirrored = Door(tmp_path / "door", caller.system, gateway=address)
        await asyncio.to_thread(mirrored.start)  # it is ready when the mirror has answered
        headers = {
            "X-Geo-Country": "DE",
            "x-mlpa-client": "192.0.2.1",
            "X-MLPA-Exchange-Key": "secret",
            "master_key": "Bearer key",
            "service-type": "ai",
        }
        await caller.ask("GET", f"{mirrored.url}/v1/models", headers=headers)
        mirrored.stop()
    seen = {name.lower() for name in heads[-1]}
    assert {"master_key", "service-type", "x-forwarded-for"} <= seen
    assert not {"x-geo-country", "x-mlpa-client", "x-mlpa-exchange-key"} & seen


@asynccontextmanager
async def mirror() -> AsyncIterator[tuple[str, list[dict[str, str]]]]:
    """A server that notes the header fields that reach it, and its host and port."""
    heads: list[dict[str, str]] = []

    async def note(request: web.Request) -> web.Response:
        heads.append(dict(request.headers))
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", note)
    async with serve(app) as url:
        yield url.removeprefix("http://"), heads


async def test_events_are_not_buffered(door: Door, caller: Caller) -> None:
    """The model says one word, and then nothing; a client that goes ends the request."""
    await caller.script("slow", [("send", event(chunk("Hel")).decode()), ("hang", None)])
    _, token = await caller.account()
    body = {"model": "slow", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession() as session,
        session.post(f"{door.url}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        assert response.status == 200
        assert b"Hel" in await response.content.readuntil(b"\n\n")
        assert await still_open(caller) == 1
    await until(lambda: still_open(caller), 5, equals=0)


async def still_open(caller: Caller) -> Any:
    """How many requests for the model LiteLLM has open."""
    url = f"http://127.0.0.1:{caller.system.listens['litellm']}/double/state"
    asked = (await caller.ask("GET", url)).json()["asked"]
    return sum(one["state"] == "open" and one["body"]["model"] == "slow" for one in asked)
