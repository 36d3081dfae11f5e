"""Every route with every credential: who gets in where."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.auth.app import build_app as build_auth
from services.auth.settings import AuthSettings
from services.gateway.app import build_app as build_gateway
from services.gateway.settings import GatewaySettings
from shared.service.app import Apps
from tests.system.clients import Caller
from tests.system.conftest import TABLES
from tests.system.credentials import Credentials, gather
from tests.system.harness import System

NOBODY = "f" * 32
PUBLIC = (
    "/health/",
    "/__",
    "/metrics",
    "/openapi.json",
    "/api/docs",
    "/.well-known/",
    "/admin/static/",
    "/admin/sign-in",
)
#: Not decided by who asks, but by what the body or the query says.
BY_CONTENT = ("/token", "/revoke", "/verify/challenge", "/verify/attest", "/verify/play")

#: What admin keys open.
API = ("/user", "/device", "/audit", "/service-types", "/admin/costs.csv")
#: At the gateway, by credential; the others are 401.
GATEWAY = {"access token": 200, "user blocked": 403, "device revoked": 403}


def _routes(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str, str]]:
    """``(service, method, path)`` of every route that there is."""
    for name, value in system.environment.items():
        monkeypatch.setenv(name, value)
    services: dict[str, Apps] = {
        "auth": build_auth(AuthSettings.from_environment()),
        "gateway": build_gateway(GatewaySettings.from_environment()),
    }
    for service, apps in services.items():
        for route in apps.main.router.routes():
            if route.resource is not None:
                yield service, route.method, route.resource.canonical


def _expected(service: str, method: str, path: str, credential: str) -> set[int]:
    changes = method not in ("GET", "HEAD")
    if path.startswith(PUBLIC):
        return {403} if changes else {200}
    if path in BY_CONTENT:
        return {400}
    if path == "/v1/embeddings":  # with a good token: no model makes them here, which is said before Redis is asked
        return {400 if credential in (*GATEWAY, "token revoked") else 401}
    if service == "gateway":
        return {GATEWAY.get(credential, 401)}
    if path.startswith(API):
        found = 404 if "{" in path else 200
        changes |= path.endswith("/export")  # a viewer does not get everything about an identity
        return {
            found
            if credential == "admin key" or (credential == "viewer key" and not changes)
            else 403
            if credential == "viewer key"
            else 401
        }
    # the console knows sessions, and nothing else
    return {303, 401, 403} if changes else {303}


def _session_expected(method: str, path: str, session: str) -> set[int]:
    if path.startswith(PUBLIC):
        return {200, 303, 403, 404}
    changes = method not in ("GET", "HEAD")
    if session == "junk" and path.endswith(".csv"):
        return {401}
    if path == "/admin/find":  # it leads to what it finds
        return {303}
    if session == "junk":
        return {303, 401, 403} if changes else {303}
    # without the token that its forms carry, a session changes nothing; and a viewer is not even shown the forms
    form = path.endswith(("/block", "/delete", "/revoke"))
    if changes:
        return {403}
    return {404} if "{" in path and not form else {403, 404} if form else {200}


async def test_every_route_lets_in_whom_it_should(
    system: System, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = await gather(caller)
    wrong: list[str] = []
    table: list[str] = []
    for service, method, path in _routes(system, monkeypatch):
        url = (system.auth_url if service == "auth" else system.gateway_url) + _filled(path)
        answers = [caller.ask(method, url, **_options(header, path)) for header in credentials.bearers.values()]
        statuses = [seen.status for seen in await asyncio.gather(*answers)]
        seen_all = dict(zip(credentials.bearers, statuses, strict=True))
        for name, seen in seen_all.items():
            expected = _expected(service, method, path, name)
            if seen not in expected:
                wrong.append(f"{service} {method} {path} with {name}: {seen}, not {sorted(expected)}")
        if service == "auth" and path.startswith("/admin"):
            wrong += await _console(caller, method, url, path, credentials)
        table.append(f"{service:8} {method:6} {path:45} {_summary(seen_all)}")
    TABLES.append(("who gets in where", table))
    assert not wrong, "\n".join(wrong)


async def _console(caller: Caller, method: str, url: str, path: str, credentials: Credentials) -> list[str]:
    wrong = []
    for name, cookie in credentials.sessions.items():
        if path == "/admin/sign-out":
            continue
        headers = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
        seen = (await caller.ask(method, url, headers=headers)).status
        expected = _session_expected(method, path, name)
        if seen not in expected:
            wrong.append(f"console {method} {path} in a session of {name}: {seen}, not {sorted(expected)}")
    return wrong


def _filled(path: str) -> str:
    nobody = "A" * 43 + "%3D"
    filled = path.replace("{user_id}", f"{NOBODY}%3Aai").replace("{key_id}", nobody).replace("{name}", "console.css")
    filled = filled.replace("{id}", "double")
    return filled.replace("/assets/console.css", "/assets/swagger-ui.css")


def _options(header: str | None, path: str) -> dict[str, Any]:
    """A body that gets as far as the credential does."""
    headers = {"Authorization": header} if header else {}
    if path == "/v1/chat/completions":
        return {"headers": headers, "json": {"model": "double", "messages": [{"role": "user", "content": "Hi"}]}}
    if path == "/v1/embeddings":
        return {"headers": headers, "json": {"model": "embedding", "input": "Hi"}}
    if path == "/v1/search":
        return {"headers": headers, "json": {"query": "Hi"}}
    if path == "/user/{user_id}/exception":
        until = datetime.now(UTC) + timedelta(hours=1)
        return {"headers": headers, "json": {"until": until.isoformat(), "without_rates": True}}
    if path == "/device/block":
        return {"headers": headers, "json": {"bundle_id": "org.example.nowhere"}}
    if path == "/user/{user_id}/budget":
        return {"headers": headers, "json": {"service_type": "ai"}}
    if path.startswith(("/token", "/revoke", "/admin/")):
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    return {"headers": headers}


def _summary(seen: dict[str, int]) -> str:
    """Statuses with who gets them; the most common one is for all others."""
    by_status: dict[int, list[str]] = {}
    for name, status in seen.items():
        by_status.setdefault(status, []).append(name)
    common = max(by_status, key=lambda status: len(by_status[status]))
    rare = "; ".join(f"{status} {', '.join(names)}" for status, names in sorted(by_status.items()) if status != common)
    return f"{common} all" if not rare else f"{common} others; {rare}"
