"""A gateway and auth as they run with FIREFOX_CLIENTS: real Redis and PostgreSQL, FxA's stand-in, LiteLLM's double."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.gateway.app import build_app
from services.gateway.settings import GatewaySettings
from services.local.device import Device
from shared.service.serve import listen
from shared.telemetry.metrics import Registry
from tests.doubles.litellm import LiteLLMDouble, model_row
from tests.services.auth.conftest import ISSUER, Auth, StartAuth, pki, start_auth
from tests.services.gateway.firefox import clients
from tests.support.service_types import toml
from tests.support.serving import serve
from tests.support.waiting import until

__all__ = ["pki", "start_auth"]

KEY = "the-secret-of-the-gateways-0123456789"
DEV_KEY = "the-client-key-of-a-test"
MODEL = "gpt"
TYPES = (
    toml("ai", max_budget="1000", purposes=["chat", "title-generation"], pool="signed-in", max_users=3, rpm=0, tpm=0)
    + toml("memories", pool="signed-in", max_users=3)
    + toml("s2s", max_budget="1000", credentials=["app_attest", "app_attest_request"], rpm=0, tpm=0)
    + toml("s2s-android", credentials=["fxa", "play"], aliases=["s2s", "old-name"])
    + toml("strict", purposes=["chat"], purposes_required=True)
    + toml("few", rpm=1)
    + toml("poor", max_budget="0.000001")
    + toml("answer", credentials=["fxa", "app_attest_request"], models=["exa"], exclusive_models=["exa"])
    + toml("ai-dev", client_key="dev")
    + toml("search", max_budget="0.005", search_tool="exa-search", search_cost="0.005")
)


@dataclass
class Between:
    """A proxy between the gateway and auth. It records and forwards requests, or answers them with `fault`."""

    target: str
    asked: list[tuple[dict[str, str], dict[str, str]]] = field(default_factory=list)
    fault: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/token", self._token)
        return app

    async def _token(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append((dict(request.headers), form))
        if self.fault is not None:
            return await self.fault(request)
        headers = {name: value for name, value in request.headers.items() if name.lower().startswith("x-mlpa")}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.target}/token", data=form, headers=headers) as answer,
        ):
            return web.Response(
                status=answer.status,
                body=await answer.read(),
                content_type="application/json",
                headers={name: answer.headers[name] for name in ("Retry-After",) if name in answer.headers},
            )


@dataclass
class Door:
    """The gateway, and clients of it."""

    url: str
    port: int
    auth: Auth
    between: Between
    double: LiteLLMDouble
    registry: Registry
    session: aiohttp.ClientSession

    async def device(self) -> Device:
        device = self.auth.device()
        assert (await self.auth.enrol(device))[0] == 201
        return device

    async def ios(self, device: Device, body: dict[str, Any] | None = None, **changes: Any) -> clients.Answer:
        """A chat as Firefox for iOS sends it; ``changes`` as ``clients.ios``."""
        challenge = changes.pop("challenge", None) or await self.auth.challenge(device)
        return await clients.send(self.port, clients.ios(device, challenge, body or clients.chat(), **changes))

    async def desktop(self, token: str, body: dict[str, Any] | None = None, **changes: Any) -> clients.Answer:
        return await clients.send(self.port, clients.desktop(token, body or clients.chat(tools=[]), **changes))

    async def android(self, token: str, body: dict[str, Any] | None = None, **changes: Any) -> clients.Answer:
        return await clients.send(self.port, clients.android(token, body or clients.chat(), **changes))

    async def access_token(self, scope: str, **options: Any) -> str:
        status, body = await self.auth.exchange(self.auth.fxa_token(**options), scope=scope)
        assert status == 200, body
        return str(body["access_token"])

    def count(self, client: str, credential: str, outcome: str) -> float:
        return self.metric(f'firefox_requests_total{{client="{client}",credential="{credential}",outcome="{outcome}"}}')

    def metric(self, series: str) -> float:
        for line in self.registry.render().decode().splitlines():
            if line.startswith(series):
                return float(line.rpartition(" ")[2])
        return 0.0


StartDoor = Callable[..., Awaitable[Door]]


@pytest.fixture
async def double() -> AsyncIterator[LiteLLMDouble]:
    async with LiteLLMDouble() as double:
        double.models = [model_row(MODEL, max_input_tokens=100_000), model_row("exa")]
        yield double


@pytest.fixture
async def start_door(
    start_auth: StartAuth, double: LiteLLMDouble, postgres_url: str, redis_url: str, tmp_path: Path
) -> AsyncIterator[StartDoor]:
    """Starts both services, with further settings of the gateway's."""
    table = tmp_path / "types.toml"
    table.write_text(TYPES)
    async with AsyncExitStack() as stack:

        async def start(*, auth_settings: dict[str, Any] | None = None, **settings: Any) -> Door:
            limits = dict.fromkeys(
                ("exchange_limit_per_source", "exchange_limit_per_identity", "challenge_limit_per_source"), 0
            )
            given = {"firefox_clients": True, "exchange_key": KEY, "service_types": table, **limits}
            auth = await start_auth(**{**given, **(auth_settings or {})})
            between = Between(auth.url)
            gateway = GatewaySettings.from_environment(
                **{
                    "mlpa_debug": True,
                    "database_url": postgres_url,
                    "redis_url": redis_url,
                    "mlpa_issuer": ISSUER,
                    "mlpa_jwks_url": f"{auth.url}/.well-known/jwks.json",
                    "auth_url": await stack.enter_async_context(serve(between.app())),
                    "litellm_api_base": double.url,
                    "mlpa_virtual_key": "sk-virtual",
                    "firefox_clients": True,
                    "exchange_key": KEY,
                    "service_types": table,
                    "client_keys": f"dev:{clients.sha256(DEV_KEY)}",
                    "_env_file": None,
                    **settings,
                }
            )
            registry = Registry()
            apps = build_app(gateway, registry=registry)
            runner = web.AppRunner(apps.main, handler_cancellation=True, shutdown_timeout=0.5)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            sock = listen("127.0.0.1", 0)
            await apps.make_site(runner, sock).start()
            session = await stack.enter_async_context(aiohttp.ClientSession())
            port = sock.getsockname()[1]
            await until(lambda: b"models_priced 2" in registry.render(), 10)
            return Door(f"http://127.0.0.1:{port}", port, auth, between, double, registry, session)

        yield start


@pytest.fixture
async def door(start_door: StartDoor) -> Door:
    return await start_door()
