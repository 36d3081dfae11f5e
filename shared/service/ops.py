"""The routes that every service has: probes, Dockerflow, metrics, API docs."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from shared.errors import NotFound
from shared.service.health import Health
from shared.service.serve import DRAIN
from shared.telemetry.metrics import CONTENT_TYPE, Page, Registry
from shared.telemetry.openapi import Answer, Operation

HEALTH = web.AppKey("health", Health)
METRICS = web.AppKey("metrics", Page)
#: The document as it is sent.
OPENAPI = web.AppKey("openapi", bytes)

VERSION = version("mlpa")
_SWAGGER_VERSION = version("swagger-ui-py")
SOURCE = "https://github.com/mozilla/mlpa"


class Alive(msgspec.Struct, frozen=True):
    status: str


class CheckResult(msgspec.Struct, frozen=True):
    status: str
    required: bool
    latency_ms: float
    error: str | None


class Readiness(msgspec.Struct, frozen=True):
    status: str
    checks: dict[str, CheckResult]


class Version(msgspec.Struct, frozen=True):
    source: str
    version: str
    commit: str
    build: str


async def liveness(_request: web.Request) -> web.Response:
    return web.json_response({"status": "alive"})


async def readiness(request: web.Request) -> web.Response:
    status, body = await request.app[HEALTH].readiness(draining=request.app[DRAIN].begun)
    return web.json_response(body, status=status)


def version_info() -> dict[str, str]:
    """Dockerflow's ``/__version__``; commit and build are the image's environment."""
    return {
        "source": SOURCE,
        "version": VERSION,
        "commit": os.environ.get("MLPA_COMMIT", ""),
        "build": os.environ.get("MLPA_BUILD", ""),
    }


async def version_view(_request: web.Request) -> web.Response:
    return web.json_response(version_info())


async def metrics(request: web.Request) -> web.Response:
    return web.Response(body=await request.app[METRICS].get(), headers={"Content-Type": CONTENT_TYPE})


#: Documentation may be cached, and is revalidated before use.
_PUBLIC = {"Cache-Control": "no-cache"}


async def openapi(request: web.Request) -> web.Response:
    return web.Response(body=request.app[OPENAPI], content_type="application/json", headers=_PUBLIC)


async def docs(_request: web.Request) -> web.Response:
    return web.Response(text=_PAGE.replace("{v}", _SWAGGER_VERSION), content_type="text/html", headers=_PUBLIC)


async def docs_script(_request: web.Request) -> web.Response:
    return web.Response(text=_SCRIPT, content_type="text/javascript", headers=_PUBLIC)


async def docs_asset(request: web.Request) -> web.FileResponse:
    """:raises NotFound: it is not one of the files."""
    name = request.match_info["name"]
    if name not in _ASSETS:
        raise NotFound
    # The address contains the package's version, so its content never changes
    kept = "public, max-age=31536000, immutable" if request.query.get("v") == _SWAGGER_VERSION else "no-cache"
    return web.FileResponse(swagger_assets() / name, headers={"Cache-Control": kept})


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>MLPA API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="/api/docs/assets/favicon-32x32.png?v={v}">
<link rel="stylesheet" href="/api/docs/assets/swagger-ui.css?v={v}"></head>
<body><div id="swagger-ui"><noscript>The API as a document: <a href="/openapi.json">openapi.json</a></noscript></div>
<script src="/api/docs/assets/swagger-ui-bundle.js?v={v}"></script>
<script src="/api/docs/start.js"></script></body></html>
"""
_SCRIPT = """window.ui = SwaggerUIBundle({
  url: '/openapi.json', dom_id: '#swagger-ui', deepLinking: true, validatorUrl: null, tryItOutEnabled: true,
});
"""


_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-16x16.png", "favicon-32x32.png")


def swagger_assets() -> Path:
    """Where the package swagger-ui-py keeps Swagger UI's files; it isn't imported."""
    spec = importlib.util.find_spec("swagger_ui")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "static"


_READINESS = {
    200: Answer("Ready, or degraded: a check that is not required fails", Readiness),
    503: Answer("A required check fails, or a drain has begun", Readiness),
}
_ALIVE = {200: Answer("The process runs", Alive)}

METRICS_OPERATION = Operation(
    "GET",
    "/metrics",
    metrics,
    "Metrics",
    {200: Answer("Prometheus text format", {"type": "string"}, "text/plain")},
    tag="Operations",
)

OPERATIONS = [
    Operation("GET", "/health/liveness", liveness, "Is the process alive?", _ALIVE, tag="Operations"),
    Operation("GET", "/health/readiness", readiness, "Can it serve?", _READINESS, tag="Operations"),
    Operation("GET", "/__lbheartbeat__", liveness, "Dockerflow: liveness", _ALIVE, tag="Operations"),
    Operation("GET", "/__heartbeat__", readiness, "Dockerflow: readiness", _READINESS, tag="Operations"),
    Operation(
        "GET", "/__version__", version_view, "Dockerflow: version", {200: Answer("Version", Version)}, tag="Operations"
    ),
    Operation(
        "GET", "/openapi.json", openapi, "This document", {200: Answer("OpenAPI 3.1", {"type": "object"})}, listed=False
    ),
    Operation("GET", "/api/docs", docs, "Swagger UI", {200: Answer("A page")}, listed=False),
    Operation("GET", "/api/docs/start.js", docs_script, "Swagger UI's start", {200: Answer("A script")}, listed=False),
    Operation("GET", "/api/docs/assets/{name}", docs_asset, "Swagger UI", {200: Answer("A file")}, listed=False),
]


def build_info(registry: Registry, service: str) -> None:
    info: dict[str, Any] = version_info()
    gauge = registry.gauge("build_info", "The running version.", ("service", "version", "commit"))
    gauge.set(1, service, info["version"], info["commit"])
