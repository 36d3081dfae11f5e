"""GET /catalogue and ``mlpa models``: every model with its price, or why it is refused; never on a public port."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from services.gateway import keys
from services.gateway.app import _render_error, build_app
from services.gateway.catalogue.operators import OPERATIONS
from services.gateway.catalogue.services import Catalogue
from services.gateway.dialects import DIALECTS, OPENAI
from services.gateway.settings import GatewaySettings
from shared.domain.service_types import ModelRow, ServiceTypes
from shared.service.web import Frame
from shared.telemetry.logs import UserDigest
from shared.telemetry.metrics import Registry
from shared.telemetry.openapi import add_routes
from tests.support.service_types import service_type, toml
from tests.support.serving import serve

ROWS = {"ai": replace(service_type("ai"), models=("*",)), "s2s": replace(service_type("s2s"), models=("gpt*",))}


def entry(name: str, **info: Any) -> Mapping[str, Any]:
    return {"model_name": name, "litellm_params": {"model": f"openai/{name}"}, "model_info": info}


PRICED = {"input_cost_per_token": 1.5e-7, "output_cost_per_token": 6e-7, "max_input_tokens": 128_000}
ENTRIES = [entry("gpt", **PRICED), entry("free"), entry("off", **PRICED)]


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app, registry = web.Application(), Registry()
    add_routes(app, OPERATIONS)
    Frame(registry, _render_error, endpoints=["/catalogue"], user_digest=UserDigest(None)).install(app)
    table = ServiceTypes(ROWS, {"off": ModelRow("off", None, None, enabled=False)})

    async def fetch() -> bytes:
        return json.dumps({"data": ENTRIES}).encode()

    async with Catalogue.open(fetch, table, registry) as catalogue:
        app[DIALECTS], app[keys.CATALOGUE], app[keys.SERVICE_TYPES] = (OPENAI,), catalogue, table
        async with serve(app) as url:
            yield url


async def run(url: str) -> tuple[int, str]:
    command = (sys.executable, "-m", "services.cli.main", "models", "--gateway-url", url)
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout or done.stderr


async def test_every_model_is_printed_with_its_price_or_the_reason_why_it_is_refused(url: str) -> None:
    status, output = await run(url)
    assert status == 0
    free, gpt, off = json.loads(output)["models"]
    assert (gpt["name"], gpt["service_types"], gpt["refused"]) == ("gpt", ["ai", "s2s"], None)
    assert (gpt["input_usd_per_token"], gpt["output_usd_per_token"]) == ("0.00000015", "0.0000006")
    assert (gpt["context_window"], gpt["min_completion_tokens"]) == (128_000, 16)
    assert (free["name"], free["service_types"], free["input_usd_per_token"]) == ("free", ["ai"], None)
    assert free["refused"] == "no input_cost_per_token"
    assert (off["name"], off["refused"]) == ("off", "its row switches it off")


async def test_a_gateway_that_has_no_such_page_or_no_models_is_named(url: str, unused_port: int) -> None:
    status, output = await run(f"{url}/v1")
    assert (status, "404 not_found" in output) == (1, True)
    status, output = await run(f"http://127.0.0.1:{unused_port}")
    assert (status, "no answer from the gateway" in output) == (1, True)


@pytest.mark.parametrize(
    ("debug", "ops_port", "main", "ops"),
    [(False, None, False, None), (True, None, True, None), (False, 9, False, True), (True, 9, False, True)],
)
async def test_it_is_on_the_ops_port_alone_or_in_development(
    debug: bool, ops_port: int | None, main: bool, ops: bool | None, tmp_path: Path
) -> None:
    table = tmp_path / "types.toml"
    table.write_text(toml("ai"))
    settings = GatewaySettings(
        _env_file=None, mlpa_debug=debug, ops_port=ops_port, service_types=table, mlpa_virtual_key="sk-" + "v" * 40
    )
    apps = build_app(settings)

    def has(app: web.Application | None) -> bool | None:
        if app is None:
            return None
        return any(route.resource and route.resource.canonical == "/catalogue" for route in app.router.routes())

    assert (has(apps.main), has(apps.ops)) == (main, ops)
