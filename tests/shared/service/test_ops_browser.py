"""The API's pages in a real browser: they render, nothing is refused by their own policy, and a request can be sent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.async_api import async_playwright

from tests.deploy.declarations import both_started

CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed")
async def test_swagger_ui_renders_on_both_services_and_sends_a_request(
    tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    async with both_started(tmp_path, postgres_url, redis_url) as services, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        faults: list[str] = []
        for _, url in services.values():
            page = await browser.new_page()
            page.on("console", lambda message: faults.append(message.text))
            page.on("pageerror", lambda error: faults.append(str(error)))
            await page.goto(f"{url}/api/docs")
            operation = page.locator(".opblock", has_text="/health/liveness").first
            await operation.click()
            await operation.locator("button.execute").click()
            answer = operation.locator(".live-responses-table .highlight-code")
            await answer.first.wait_for()
            assert '"alive"' in await answer.first.inner_text()
            assert faults == []
        await browser.close()
