"""A real browser: Chromium, where it is installed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from services.gateway.app import build_app
from services.gateway.settings import GatewaySettings
from services.local.process import Process, Program
from shared.service.serve import listen
from tests.services.auth.admin.conftest import ADMIN, ADMIN_SETTINGS, UID, USER, Rows
from tests.services.auth.conftest import ISSUER, Auth, StartAuth

playwright = pytest.importorskip("playwright.async_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

FULL = bool(os.environ.get("MLPA_TEST_FULL"))
ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Chromium for all tests, since it takes seconds to start."""
    folder = tmp_path_factory.mktemp("chromium")
    told = folder / "DevToolsActivePort"
    process = Process(Program("chromium", (str(CHROMIUM), *ARGS, f"--user-data-dir={folder}")), folder / "log")
    process.start()
    try:
        process.wait_ready(lambda: told.exists() and "\n" in told.read_text())
        yield f"http://127.0.0.1:{told.read_text().split()[0]}"
    finally:
        process.kill()


@pytest.fixture
async def browser(auth_with_gateway: Auth, chromium: str) -> AsyncIterator[playwright.Browser]:
    """Left before the services end: its connections are open as long as its pages are."""
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.connect_over_cdp(chromium)
        yield browser
        await browser.close()


@pytest.fixture
async def gateway(postgres_url: str, redis_url: str, unused_port: int, auth_with_gateway: Auth) -> AsyncIterator[str]:
    """A gateway that takes the tokens of auth; no LiteLLM behind it."""
    settings = GatewaySettings.from_environment(
        _env_file=None,
        mlpa_debug=True,
        database_url=postgres_url,
        redis_url=redis_url,
        mlpa_issuer=ISSUER,
        mlpa_jwks_url=f"{auth_with_gateway.url}/.well-known/jwks.json",
        litellm_api_base="http://127.0.0.1:9",
    )
    apps = build_app(settings)
    runner = web.AppRunner(apps.main, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await apps.make_site(runner, listen("127.0.0.1", unused_port)).start()
    yield f"http://127.0.0.1:{unused_port}"
    await runner.cleanup()


@pytest.fixture
async def auth_with_gateway(start_auth: StartAuth, unused_port: int) -> Auth:
    return await start_auth(**{**ADMIN_SETTINGS, "gateway_url": f"http://127.0.0.1:{unused_port}"})


async def budget_status(session: aiohttp.ClientSession, gateway: str, token: str) -> tuple[int, str | None]:
    async with session.get(f"{gateway}/v1/budget", headers={"Authorization": f"Bearer {token}"}) as response:
        body = await response.json()
        return response.status, body.get("error", {}).get("code")


@pytest.mark.parametrize("scripts", [True, False] if FULL else [True])
async def test_find_a_user_block_it_see_its_token_refused_unblock_and_leave(
    browser: playwright.Browser, auth_with_gateway: Auth, gateway: str, scripts: bool
) -> None:
    auth = auth_with_gateway
    _, exchanged = await auth.exchange(auth.fxa_token(UID))
    token = exchanged["access_token"]
    assert await budget_status(auth.session, gateway, token) == (200, None)

    context = await browser.new_context(java_script_enabled=scripts)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    await page.goto(f"{auth.url}/admin")
    await page.get_by_label("Admin key").fill(ADMIN)
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Overview").wait_for()
    await page.get_by_role("heading", name=re.compile("^Gateway (ready|degraded)$")).wait_for()

    await page.get_by_role("link", name="Users", exact=True).click()
    await page.get_by_label("Find by the start of the user id").fill(UID[:6])
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name=USER).click()
    await page.get_by_role("button", name="Block…").click()
    await page.get_by_label("Reason").fill("resold the key")
    await page.get_by_role("button", name="Block", exact=True).click()
    await page.get_by_text("Blocked, in all service types").wait_for()
    async with asyncio.timeout(1):
        assert await budget_status(auth.session, gateway, token) == (403, "user_blocked")
    assert await page.get_by_text("“resold the key”").count()

    await page.get_by_role("button", name="Unblock").click()
    await page.get_by_text("Unblocked.").wait_for()
    assert await budget_status(auth.session, gateway, token) == (200, None)

    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_text("You are signed out.").wait_for()
    await page.goto(f"{auth.url}/admin/users")
    assert await page.get_by_label("Admin key").count() == 1
    assert complaints == []
    await context.close()


async def test_hostile_names_run_nothing_and_every_page_fits_a_phone(
    browser: playwright.Browser, auth_with_gateway: Auth, rows: Rows
) -> None:
    for name in ("<script>document.title='taken'</script>:ai", '"><img src=x onerror="document.title=1">:ai', USER):
        rows.user(name)
        rows.request(name, name, model=name[:60], outcome=name[:40])
    context = await browser.new_context(viewport={"width": 375, "height": 800})
    page = await context.new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    await page.goto(f"{auth_with_gateway.url}/admin")
    await page.get_by_label("Admin key").fill(ADMIN)
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Overview").wait_for()
    for path in ("", "/users", "/devices", "/audit", "/service-types"):
        await page.goto(f"{auth_with_gateway.url}/admin{path}")
        assert "MLPA console" in await page.title()
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= 375, path
    await page.goto(f"{auth_with_gateway.url}/admin/users")
    for index in range(await page.locator("td a.id").count()):
        await page.goto(f"{auth_with_gateway.url}/admin/users")
        name = await page.locator("td a.id").nth(index).inner_text()
        await page.locator("td a.id").nth(index).click()
        assert await page.locator("h1").inner_text() == name
        assert await page.evaluate("document.documentElement.scrollWidth") <= 375
        assert await page.locator("img[src='x'], script").count() == 0
    assert dialogs == []
    await context.close()


async def test_every_page_can_be_read_by_everybody_and_fits(
    browser: playwright.Browser, auth_with_gateway: Auth, rows: Rows
) -> None:
    """axe-core finds nothing: contrast, names, headings, tables; at a desk in daylight, on a phone at night."""
    axe = pytest.importorskip("axe_playwright_python.async_playwright").Axe()
    device = f"{'A' * 43}=:ai"
    for name in (USER, device):
        rows.user(name)
        rows.request(f"success {name}", name)
        rows.request(f"error {name}", name, outcome="error", model="another", cost=90_000_000)
        rows.run("insert into refusals values (now(), %s, %s, %s, 'ai', 'gpt', 'rpm', 'In words.')", name, name, name)
    rows.device(device.rpartition(":")[0])
    rows.run("insert into identities (identity, blocked_at, blocked_reason) values (%s, now(), 'spam')", UID)
    rows.run("insert into exceptions values (%s, 1, true, now() + interval '1 day', 'fair')", USER)
    rows.run(
        "insert into audit_log (actor, action, subject, new) values ('jane', 'user.block', %s, '{\"a\": 1}')", USER
    )
    here, there = (f"/users/{quote(name, safe='')}" for name in (USER, device))
    dark = ["/sign-in", "", here, "/costs"]
    light = [*dark, "/users", f"{here}/block", "/requests", "/devices", "/models", "/service-types", "/audit"]
    light += [f"/devices/{quote(device.rpartition(':')[0], safe='')}/revoke", "/nothing"]
    if FULL:
        dark += ["/users", "/requests", "/service-types"]
        light += ["/users?sort=seen", "/users?q=none", there, "/requests?code=none", "/costs?by=model"]
    looks: list[tuple[Any, int, list[str]]] = [("light", 1280, light), ("dark", 375, dark)]
    for scheme, width, paths in looks:
        context = await browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
        page = await context.new_page()
        for path in paths:
            await page.goto(f"{auth_with_gateway.url}/admin{path}")
            found = await axe.run(page)
            assert found.violations_count == 0, f"{path}: {found.generate_report()}"
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
            if path == "/sign-in":
                await page.get_by_label("Admin key").fill(ADMIN)
                await page.keyboard.press("Enter")
                await page.get_by_role("heading", name="Overview").wait_for()
        await context.close()


async def test_the_console_is_used_with_the_keyboard_alone(
    browser: playwright.Browser, auth_with_gateway: Auth, rows: Rows
) -> None:
    rows.user()
    page = await browser.new_page()
    field = page.locator("input:focus")  # the browser gives it the focus a moment after the page is there
    await page.goto(f"{auth_with_gateway.url}/admin")
    await field.wait_for()
    await page.keyboard.type(ADMIN)
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Overview").wait_for()
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to content"
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.type(USER)
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name=USER).wait_for()
    for _ in range(60):
        await page.keyboard.press("Tab")
        focused = await page.evaluate(
            "[document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert focused[1] != "none", focused
        if focused[0] == "Block…":
            break
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Block this user?").wait_for()
    await field.wait_for()
    await page.keyboard.type("by hand")
    await page.keyboard.press("Enter")
    await page.get_by_text("“by hand”").wait_for()
    await page.close()


async def test_the_api_docs_send_a_real_request(browser: playwright.Browser, auth_with_gateway: Auth) -> None:
    page = await browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if "Security Policy" in message.text else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(f"{auth_with_gateway.url}/api/docs")
    await page.get_by_role("button", name="Authorize").first.click()
    form = page.locator("form").filter(has_text="admin_key")
    await form.locator("input").fill(ADMIN)
    await form.locator(".authorize").click()
    await page.locator(".btn-done").first.click()
    operation = page.locator("#operations-Users-get_user_counts_by_service_type")
    await operation.locator(".opblock-summary-control").click()
    await operation.locator(".execute").click()
    body = operation.locator(".live-responses-table .response-col_description .microlight").first
    await body.wait_for()
    assert '"memories": 0' in await body.inner_text()
    assert complaints == []
    await page.close()
