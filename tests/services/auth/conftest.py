"""Auth as it runs, on real PostgreSQL and Valkey, with the FxA stand-in and the test root of App Attest."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.auth.app import build_app
from services.auth.settings import AuthSettings
from services.cli.client import ACCESS_TOKEN, ASSERTION, GRANT_TYPE
from services.local.device import Device
from services.local.fxa import StandIn, TokenOrder
from services.local.fxa_keys import KeyRing, SigningKey
from services.local.pki import Pki
from shared.service.app import Apps
from shared.service.serve import listen
from shared.telemetry.metrics import Registry

ISSUER = "http://localhost:8081"
TEAM, BUNDLE = "DEVELOPMNT", "org.mozilla.ios.Fennec"
UID = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="session")
def pki() -> Pki:
    return Pki.create()


@dataclass
class Auth:
    """A running auth, and a client of it."""

    url: str
    session: aiohttp.ClientSession
    registry: Registry
    settings: AuthSettings
    fxa: StandIn
    pki: Pki
    apps: Apps
    fxa_issuer: str = field(default="")

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
        """Status, decoded body, headers."""
        async with self.session.request(method, self.url + path, **options) as response:
            raw = await response.read()
            body = json.loads(raw) if raw and "json" in response.content_type else raw
            return response.status, body, response.headers

    def device(self, **options: Any) -> Device:
        return Device(pki=self.pki, team_id=TEAM, bundle_id=BUNDLE, **options)

    async def challenge(self, device: Device) -> str:
        status, body, _ = await self.ask("GET", "/verify/challenge", params={"key_id_b64": device.key_id_b64})
        assert status == 200
        return str(body["challenge"])

    def attest_body(self, device: Device, challenge: str) -> dict[str, str]:
        return {
            "key_id_b64": device.key_id_b64,
            "challenge_b64": base64.b64encode(challenge.encode()).decode(),
            "attestation_obj_b64": base64.b64encode(device.attest(challenge)).decode(),
            "bundle_id": device.bundle_id,
        }

    async def enrol(self, device: Device) -> tuple[int, Any]:
        body = self.attest_body(device, await self.challenge(device))
        status, answer, _ = await self.ask("POST", "/verify/attest", json=body)
        return status, answer

    async def enrolled(self, **options: Any) -> Device:
        device = self.device(**options)
        assert (await self.enrol(device))[0] == 201
        return device

    async def assertion(self, device: Device, scope: str = "ai", **claims: Any) -> str:
        """A subject_token, its claims changed at will."""
        signed = {"typ": "mlpa-token-exchange", "aud": ISSUER, "scope": scope, **claims}
        if "challenge" not in signed:
            signed["challenge"] = await self.challenge(device)
        return subject_token(device, json.dumps(signed).encode())

    def fxa_token(self, uid: str = UID, kind: Literal["jwt", "opaque"] = "jwt", **options: Any) -> str:
        return self.fxa.mint(TokenOrder(uid=uid, kind=kind, **options))

    async def exchange(self, subject: str, kind: str = ACCESS_TOKEN, scope: str = "ai", **form: str) -> tuple[int, Any]:
        data = {"grant_type": GRANT_TYPE, "subject_token": subject, "subject_token_type": kind, "scope": scope, **form}
        status, body, _ = await self.ask("POST", "/token", data=data)
        return status, body

    async def exchange_device(self, device: Device, scope: str = "ai") -> tuple[int, Any]:
        return await self.exchange(await self.assertion(device, scope), ASSERTION, scope)


def subject_token(device: Device, client_data: bytes) -> str:
    subject = {
        "key_id_b64": device.key_id_b64,
        "assertion_obj_b64": base64.b64encode(device.assert_(client_data)).decode(),
        "client_data_b64": base64.b64encode(client_data).decode(),
        "bundle_id": device.bundle_id,
    }
    return base64.urlsafe_b64encode(json.dumps(subject).encode()).rstrip(b"=").decode()


StartAuth = Callable[..., Awaitable[Auth]]


@pytest.fixture
async def start_auth(
    postgres_url: str, redis_url: str, pki: Pki, fxa_keys: list[SigningKey], tmp_path: Path
) -> AsyncIterator[StartAuth]:
    """Starts auth with settings of the test's choice beside those that it needs."""
    root = tmp_path / "root.pem"
    root.write_bytes(pki.root_pem)
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Auth:
            fxa = StandIn("http://fxa.test", KeyRing(fxa_keys))
            fxa_server = TestServer(fxa.app())
            await fxa_server.start_server()
            stack.push_async_callback(fxa_server.close)
            given = {
                "mlpa_debug": True,
                "database_url": postgres_url,
                "redis_url": redis_url,
                "mlpa_issuer": ISSUER,
                "mlpa_signing_keys_dir": tmp_path / "keys",
                "app_attest_root_ca": root,
                "app_development_team": TEAM,
                "app_attest_bundle_ids": BUNDLE,
                "fxa_base_url": str(fxa_server.make_url("/v1")),
                "fxa_issuer": "http://fxa.test",
                "litellm_provision_users": False,
                "_env_file": None,
            }
            made = AuthSettings.from_environment(**{**given, **settings})
            registry = Registry()
            apps = build_app(made, registry=registry)
            runner = web.AppRunner(apps.main, handler_cancellation=True)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            sock = listen("127.0.0.1", 0)
            await apps.make_site(runner, sock).start()
            for app, port in ((apps.ops, made.ops_port), (apps.admin, made.admin_port)):
                if app is not None and port:
                    beside = web.AppRunner(app, handler_cancellation=True)
                    await beside.setup()
                    stack.push_async_callback(beside.cleanup)
                    await apps.make_ops_site(beside, listen("127.0.0.1", port)).start()
            session = await stack.enter_async_context(aiohttp.ClientSession())
            return Auth(f"http://127.0.0.1:{sock.getsockname()[1]}", session, registry, made, fxa, pki, apps)

        yield start


@pytest.fixture
async def auth(start_auth: StartAuth) -> Auth:
    return await start_auth()


async def many(number: int, make: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """The results of so many at once."""
    return await asyncio.gather(*(make(index) for index in range(number)))
