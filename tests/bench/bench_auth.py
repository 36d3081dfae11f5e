"""The cost of an exchange in auth (without its log line), and of verifying its token in the gateway."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from services.auth.app import build_app
from services.auth.settings import AuthSettings
from services.auth.tokens.issuer import Issuer
from services.auth.tokens.key_ring import KeyRing as SigningKeys
from services.auth.tokens.key_ring import create_key
from services.cli.client import ACCESS_TOKEN, ASSERTION, GRANT_TYPE, subject_token
from services.gateway.tokens.keyset import key_set
from services.gateway.tokens.verifier import TokenVerifier
from services.local.device import Device
from services.local.fxa import StandIn, TokenOrder
from services.local.fxa_keys import KeyRing
from services.local.pki import Pki
from services.local.postgres import PostgresServer
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.service.keyset import KeySet
from shared.stores import migrate
from shared.telemetry.metrics import Registry
from tests.bench.bench_fxa import ServerThread
from tests.bench.figures import Row, beside, spread
from tests.support.service_types import development
from tests.support.serving import serve

ISSUER, TEAM, BUNDLE = "http://127.0.0.1:8081", "DEVELOPMNT", "org.mozilla.ios.Fennec"
AT_ONCE, ROUNDS, EACH = 8, 7, 25
TOKENS, CHECKS = 300, 9


async def run() -> list[Row]:
    """Rows of (name, figure)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # noqa: ASYNC240 - PostgreSQL runs as somebody else
        with (
            ValkeyServer(folder / "valkey", free_port()) as valkey,
            PostgresServer(folder / "postgres", free_port(), durable=False) as postgres,
        ):
            database = postgres.create_database("mlpa")
            await asyncio.to_thread(migrate.upgrade, database)
            return [*await _exchanges(folder, valkey.url, database), *await _token_checks(folder)]


async def _exchanges(folder: Path, redis_url: str, database_url: str) -> list[Row]:
    pki, fxa = Pki.create(), StandIn("http://fxa.test", KeyRing.open())
    (folder / "root.pem").write_bytes(pki.root_pem)
    server = ServerThread()
    async with serve(fxa.app()) as fxa_url:
        settings = AuthSettings.from_environment(
            mlpa_debug=True,
            database_url=database_url,
            redis_url=redis_url,
            mlpa_issuer=ISSUER,
            mlpa_signing_keys_dir=folder / "keys",
            app_attest_root_ca=folder / "root.pem",
            app_development_team=TEAM,
            app_attest_bundle_ids=BUNDLE,
            fxa_base_url=f"{fxa_url}/v1",
            fxa_issuer="http://fxa.test",
            litellm_provision_users=False,
            exchange_limit_per_identity=10**6,
            exchange_limit_per_source=10**6,
            challenge_limit_per_source=10**6,
            enroll_limit_per_source=10**6,
            _env_file=None,
        )
        url, close = await server.run(_start(settings))
        try:
            async with aiohttp.ClientSession(url) as client:
                cached = await _fxa(server, client, fxa)
                devices = [Device(pki=pki, team_id=TEAM, bundle_id=BUNDLE) for _ in range(AT_ONCE)]
                asserted = await _app_attest(server, client, devices)
        finally:
            await server.run(close())
            server.stop()
    return [
        ("exchange of a cached FxA token", _per_core(cached)),
        ("exchange of an App Attest assertion", _per_core(asserted)),
    ]


def _per_core(seconds: list[float]) -> str:
    return f"{spread(seconds, 'us CPU', 1e6)}; {spread([1 / one for one in seconds], 'a second and core')}"


async def _start(settings: AuthSettings) -> tuple[str, Callable[[], Awaitable[None]]]:
    runner = web.AppRunner(build_app(settings).main, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}", runner.cleanup


async def _fxa(server: ServerThread, client: aiohttp.ClientSession, fxa: StandIn) -> list[float]:
    tokens = [fxa.mint(TokenOrder(uid=f"{number:032x}")) for number in range(AT_ONCE)]
    for _ in range(2):  # the first makes the users, the second finds all in Redis
        await _load(server, client, [[_form(token, ACCESS_TOKEN)] for token in tokens])
    rounds = [[[_form(token, ACCESS_TOKEN)] * EACH for token in tokens] for _ in range(ROUNDS)]
    return [await _load(server, client, forms) for forms in rounds]


async def _app_attest(server: ServerThread, client: aiohttp.ClientSession, devices: Sequence[Device]) -> list[float]:
    for device in devices:
        challenge = await _challenge(client, device)
        body = {
            "key_id_b64": device.key_id_b64,
            "challenge_b64": base64.b64encode(challenge.encode()).decode(),
            "attestation_obj_b64": base64.b64encode(device.attest(challenge)).decode(),
            "bundle_id": device.bundle_id,
        }
        async with client.post("/verify/attest", json=body) as response:
            assert response.status == 201
    times = []
    for _ in range(ROUNDS + 1):
        forms = [[_form(await _assertion(client, device), ASSERTION) for _ in range(EACH)] for device in devices]
        times.append(await _load(server, client, forms))
    return times[1:]


async def _challenge(client: aiohttp.ClientSession, device: Device) -> str:
    async with client.get("/verify/challenge", params={"key_id_b64": device.key_id_b64}) as response:
        return str((await response.json())["challenge"])


async def _assertion(client: aiohttp.ClientSession, device: Device) -> str:
    challenge = await _challenge(client, device)
    signed = {"typ": "mlpa-token-exchange", "aud": ISSUER, "challenge": challenge, "scope": "ai"}
    return subject_token(device, json.dumps(signed).encode())


def _form(subject: str, kind: str) -> dict[str, str]:
    return {"grant_type": GRANT_TYPE, "subject_token": subject, "subject_token_type": kind, "scope": "ai"}


async def _load(server: ServerThread, client: aiohttp.ClientSession, forms: list[list[dict[str, str]]]) -> float:
    """CPU seconds of auth per exchange: each list in turn, all lists at once."""

    async def some(these: list[dict[str, str]]) -> None:
        for form in these:
            async with client.post("/token", data=form) as response:
                assert response.status == 200, await response.text()

    before = await server.cpu_seconds()
    await asyncio.gather(*map(some, forms))
    return (await server.cpu_seconds() - before) / sum(map(len, forms))


async def _token_checks(folder: Path) -> list[Row]:
    create_key(folder / "checks", activate_at=0)
    ring = SigningKeys(folder / "checks")
    issuer = Issuer(ring, issuer=ISSUER, ttl=300)
    tokens = [
        issuer.issue(user_id=f"{number:032x}:ai", client_id="5882386c6d801776", scope="ai", amr="fxa").text
        for number in range(TOKENS)
    ]
    cold, warm = [], []
    async with _key_set(ring) as keys:
        for _ in range(CHECKS):
            verifier = TokenVerifier(keys, development(), Registry(), issuer=ISSUER)
            cold.append(await _check(verifier, tokens))
            warm.append(await _check(verifier, tokens))
    figure = beside(warm, cold, "us CPU", 1e6, goal="at most 0.1x")
    return [("gateway's check of a token seen before, beside its first", figure)]


@asynccontextmanager
async def _key_set(ring: SigningKeys) -> AsyncIterator[KeySet]:
    async def jwks(_request: web.Request) -> web.Response:
        return web.json_response(ring.jwks())

    app = web.Application()
    app.router.add_get("/jwks", jwks)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(app))
        session: Any = await stack.enter_async_context(aiohttp.ClientSession())
        keys = key_set(session, Registry(), issuer=ISSUER, jwks_url=f"{url}/jwks")
        await keys.refresh()
        yield keys


async def _check(verifier: TokenVerifier, tokens: list[str]) -> float:
    before = time.thread_time()
    for token in tokens:
        await verifier.verify(token)
    return (time.thread_time() - before) / len(tokens)
