"""The routes of models, over a real socket: every name that the list has can be asked for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace
from yarl import URL

from services.gateway import keys
from services.gateway.app import _render_error
from services.gateway.catalogue.services import Catalogue
from services.gateway.catalogue.views import OPERATIONS
from services.gateway.dialects import DIALECTS, OPENAI
from services.gateway.tokens.bearer import VERIFIER
from services.gateway.tokens.models import Principal
from shared.domain.service_types import ServiceTypes
from shared.service.web import Frame
from shared.telemetry.logs import UserDigest
from shared.telemetry.metrics import Registry
from shared.telemetry.openapi import add_routes
from tests.support.service_types import service_type

NAMES = ["gpt", "vertex_ai/x@20250929", "a#b", "a+b", "a?b=c&d", "50%", "a%2Fb", "é/ü", "a/b/c", "a[1]", "x" * 256]
FORBIDDEN = "exa/search"


async def answered(value: Any) -> Any:
    return value


@pytest.fixture
async def url() -> AsyncIterator[str]:
    row = service_type()
    row = replace(row, models=tuple(NAMES))
    prices = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
    entries = [{"model_name": name, "litellm_params": {}, "model_info": prices} for name in (*NAMES, FORBIDDEN)]
    principal = Principal("uid:ai", "uid", row, "jti", 2e9)
    app = web.Application()
    add_routes(app, OPERATIONS)
    registry = Registry()
    frame = Frame(registry, _render_error, endpoints=[one.path for one in OPERATIONS], user_digest=UserDigest(None))
    frame.install(app)
    body = json.dumps({"data": entries}).encode()
    async with Catalogue.open(lambda: answered(body), ServiceTypes({}, {}), registry) as catalogue:
        app[DIALECTS] = (OPENAI,)
        app[VERIFIER] = SimpleNamespace(verify=lambda _token: answered(principal))  # type: ignore[assignment]
        app[keys.BUDGETS] = SimpleNamespace(check=lambda _principal: answered(None))  # type: ignore[assignment]
        app[keys.CATALOGUE] = catalogue
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{site.port}"
        await runner.cleanup()


async def get(url: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer x"}) as session,
        session.get(URL(url, encoded=True)) as response,
    ):
        return response.status, await response.json()


async def test_each_model_of_the_list_can_be_read_with_its_slashes_as_they_are_or_escaped(url: str) -> None:
    status, listed = await get(f"{url}/v1/models")
    assert (status, [model["id"] for model in listed["data"]]) == (200, sorted(NAMES))
    for model in listed["data"]:
        for safe in ("/", ""):
            assert await get(f"{url}/v1/models/{quote(model['id'], safe=safe)}") == (200, model)


@pytest.mark.parametrize("name", ["unknown", FORBIDDEN, "gp", "gpt/", "a/b", "%00", "x" * 257])
async def test_a_model_that_is_unknown_or_not_for_this_user_is_404(url: str, name: str) -> None:
    status, body = await get(f"{url}/v1/models/{name}")
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/models/", "/chat/completions", "/v1/completions", "/v1/models%2Fgpt"]
)
async def test_an_unknown_path_names_what_is_served(url: str, path: str) -> None:
    status, body = await get(url + path)
    assert (status, body["error"]["code"]) == (404, "not_found")
    for served in ("POST /v1/chat/completions", "GET /v1/models", "GET /v1/models/{id}", "GET /v1/budget"):
        assert served in body["error"]["message"]
