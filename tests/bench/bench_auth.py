"""The cost of an exchange in auth (without its log line), and of verifying its token in the gateway.

An exchange takes turns with a form that a handler of aiohttp only reads.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from services.auth.app import build_app
from services.auth.settings import AuthSettings
from services.auth.tokens.issuer import Issuer
from services.auth.tokens.key_ring import KeyRing as SigningKeys, create_key
from services.cli.client import ACCESS_TOKEN, ASSERTION, GRANT_TYPE, subject_token
from services.gateway.tokens.keyset import key_set
from services.gateway.tokens.verifier import TokenVerifier
from services.local.device import Device
from services.local.fxa import StandIn, TokenOrder
from services.local.fxa_keys import KeyRing
from services.local.pki import Pki
from shared.service.keyset import KeySet
from shared.telemetry.metrics import Registry
from tests.bench.bench_fxa import ServerThread
from tests.bench.figures import Row, beside, spread, turns
from tests.bench.stores import stores
from tests.support.service_types import development
from tests.support.serving import serve

ISSUER, TEAM, BUNDLE = "http://127.0.0.1:8081", "DEVELOPMNT", "org.mozilla.ios.Fennec"
AT_ONCE, ROUNDS, EACH = 8, 7, 25
TOKENS, CHECKS = 300, 9

Work = Callable[[], Awaitable[float]]


async def run() -> list[Row]:
    """Rows of (name, figure)."""
    with stores() as (folder, valkey, _, database):
        return [*await _exchanges(folder, valkey.url, database), *await _token_checks(folder)]


async def _exchanges(folder: Path, redis_url: str, database_url: str) -> list[Row]:
    pki, fxa = Pki.create(), StandIn("http://fxa.test", KeyRing.open())
    (folder / "root.pem").write_bytes(pki.root_pem)
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
        devices = [Device(pki=pki, team_id=TEAM, bundle_id=BUNDLE) for _ in range(AT_ONCE)]
        with ServerThread() as server:
            async with (
                server.serving(serve(build_app(settings).main)) as url,
                server.serving(serve(_bare())) as bare_url,
                aiohttp.ClientSession(url) as client,
                aiohttp.ClientSession(bare_url) as bare,
            ):
                return [*await _fxa(server, client, bare, fxa), *await _app_attest(server, client, bare, devices)]


def _rows(name: str, goal: int, exchange: list[float], bare: list[float]) -> list[Row]:
    figure = spread([1 / one for one in exchange])
    return [
        (f"{name}, a second and core", f"{figure}, goal at least {goal:,}"),
        (f"{name}, beside a bare handler", beside(exchange, bare, "us CPU", 1e6)),
    ]


def _bare() -> web.Application:
    async def token(request: web.Request) -> web.Response:
        await request.post()
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/token", token)
    return app


async def _fxa(
    server: ServerThread, client: aiohttp.ClientSession, bare: aiohttp.ClientSession, fxa: StandIn
) -> list[Row]:
    forms = [_form(fxa.mint(TokenOrder(uid=f"{number:032x}")), ACCESS_TOKEN) for number in range(AT_ONCE)]

    def load(client: aiohttp.ClientSession) -> Work:
        async def exchange(number: int) -> None:
            await _exchange(client, forms[number])

        return lambda: _load(server, exchange)

    # the first makes the users, the second finds all in Redis
    return _rows(
        "exchange of a cached FxA token", 1500, *await turns(load(client), load(bare), rounds=ROUNDS, warm_up=2)
    )


async def _app_attest(
    server: ServerThread, client: aiohttp.ClientSession, bare: aiohttp.ClientSession, devices: Sequence[Device]
) -> list[Row]:
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

    async def exchange(number: int) -> None:
        await _exchange(client, _form(await _assertion(client, devices[number]), ASSERTION))

    async def read(_number: int) -> None:
        await _exchange(bare, _form("A" * 700, ASSERTION))

    name = "exchange of an App Attest assertion, with its challenge"
    done = await turns(lambda: _load(server, exchange), lambda: _load(server, read), rounds=ROUNDS, warm_up=1)
    return _rows(name, 900, *done)


async def _challenge(client: aiohttp.ClientSession, device: Device) -> str:
    async with client.get("/verify/challenge", params={"key_id_b64": device.key_id_b64}) as response:
        return str((await response.json())["challenge"])


async def _assertion(client: aiohttp.ClientSession, device: Device) -> str:
    challenge = await _challenge(client, device)
    signed = {"typ": "mlpa-token-exchange", "aud": ISSUER, "challenge": challenge, "scope": "ai"}
    return subject_token(device, json.dumps(signed).encode())


def _form(subject: str, kind: str) -> dict[str, str]:
    return {"grant_type": GRANT_TYPE, "subject_token": subject, "subject_token_type": kind, "scope": "ai"}


async def _exchange(client: aiohttp.ClientSession, form: dict[str, str]) -> None:
    async with client.post("/token", data=form) as response:
        assert response.status == 200, await response.text()


async def _load(server: ServerThread, exchange: Callable[[int], Awaitable[None]]) -> float:
    """CPU seconds of auth per exchange, with ``AT_ONCE`` under way."""

    async def some(number: int) -> None:
        for _ in range(EACH):
            await exchange(number)

    before = await server.cpu_seconds()
    await asyncio.gather(*map(some, range(AT_ONCE)))
    return (await server.cpu_seconds() - before) / AT_ONCE / EACH


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
    async with serve(app) as url, aiohttp.ClientSession() as session:
        keys = key_set(session, Registry(), issuer=ISSUER, jwks_url=f"{url}/jwks")
        await keys.refresh()
        yield keys


async def _check(verifier: TokenVerifier, tokens: list[str]) -> float:
    before = time.thread_time()
    for token in tokens:
        await verifier.verify(token)
    return (time.thread_time() - before) / len(tokens)
