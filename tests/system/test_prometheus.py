"""The platform team's queries, asked of a real Prometheus that scrapes both services under a small load."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.local.process import Process, Program, answers, free_port
from tests.system.clients import Caller
from tests.system.harness import System

PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="Debian's package prometheus is not installed")

QUERIES = [
    'sum(rate(requests_total{endpoint!~"/metrics"}[5m]))',
    'sum by (method, endpoint) (rate(requests_total{endpoint!~"/metrics"}[5m]))',
    'sum(in_progress_requests{endpoint!~"/metrics"})',
    "sum by (status_code) (rate(response_status_codes_total[5m]))",
    'sum(rate(response_status_codes_total{status_code=~"5.."}[5m])) / '
    'sum(rate(requests_total{endpoint!~"/metrics"}[5m]))',
    'sum(rate(request_latency_seconds_sum{endpoint!~"/metrics"}[5m])) / '
    'sum(rate(request_latency_seconds_count{endpoint!~"/metrics"}[5m]))',
    'sum by (method, endpoint) (rate(request_latency_seconds_sum{endpoint!~"/metrics"}[5m])) / '
    'sum by (method, endpoint) (rate(request_latency_seconds_count{endpoint!~"/metrics "}[5m]))',
    "rate(validate_challenge_latency_seconds_sum[5m]) / rate(validate_challenge_latency_seconds_count[5m])",
    "sum by (result) (rate(validate_app_attest_latency_seconds_sum[5m])) / "
    "sum by (result) (rate(validate_app_attest_latency_seconds_count[5m]))",
    "sum by (result) (rate(validate_app_assert_latency_seconds_sum[5m])) / "
    "sum by (result) (rate(validate_app_assert_latency_seconds_count[5m]))",
    "sum by (result) (rate(validate_fxa_latency_seconds_sum[5m])) / "
    "sum by (result) (rate(validate_fxa_latency_seconds_count[5m]))",
    "sum by (verification_source) (rate(validate_fxa_latency_seconds_sum[5m])) / "
    "sum by (verification_source) (rate(validate_fxa_latency_seconds_count[5m]))",
    "sum by (verification_source) (rate(fxa_verifications_total[5m]))",
    "sum by (result) (rate(chat_completion_latency_seconds_sum[5m])) / "
    "sum by (result) (rate(chat_completion_latency_seconds_count[5m]))",
    "rate(chat_completion_ttft_seconds_sum[5m]) / rate(chat_completion_ttft_seconds_count[5m])",
    "sum(rate(chat_tokens_total[5m])) by (type) / on() group_left() "
    "sum(rate(chat_completion_latency_seconds_count[5m]))",
    "sum(rate(chat_tokens_total[5m])) / sum(rate(chat_completion_latency_seconds_count[5m]))",
]


@pytest.fixture
async def prometheus(system: System, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a Prometheus that scrapes as often as there is something new."""
    targets = [url.removeprefix("http://") for url in (system.auth_url, system.gateway_url)]
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 250ms}\nscrape_configs:\n"
        f"  - {{job_name: mlpa, static_configs: [{{targets: {targets}}}]}}\n"
    )
    port = free_port()
    argv = (
        PROMETHEUS or "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    url = f"http://127.0.0.1:{port}"
    process = Process(Program("prometheus", argv), tmp_path / "prometheus.log")
    process.start()
    try:
        await asyncio.to_thread(process.wait_ready, lambda: answers(f"{url}/-/ready"))
        yield url
    finally:
        process.stop()


async def use_everything(caller: Caller) -> None:
    """A device and an account, enrolled, exchanged, chatting."""
    device = await caller.enrolled()
    await caller.exchange_device(device)
    _, token = await caller.account()
    await caller.exchange(await caller.fxa_token())
    await caller.chat(token)
    await caller.stream(token)


async def ask(session: aiohttp.ClientSession, url: str, query: str) -> list[Any]:
    async with session.get(f"{url}/api/v1/query", params={"query": query}) as response:
        answer = await response.json()
    assert answer["status"] == "success", answer
    result: list[Any] = answer["data"]["result"]
    return [sample for sample in result if sample["value"][1] not in ("NaN", "+Inf")]


@needs_prometheus
async def test_every_query_of_the_platform_team_returns_data(prometheus: str, caller: Caller) -> None:
    missing = list(QUERIES)
    async with aiohttp.ClientSession() as session:
        for _ in range(30):  # each round adds what the next scrape sees
            await use_everything(caller)
            missing = [query for query in missing if not await ask(session, prometheus, query)]
            if not missing:
                break
            await asyncio.sleep(0.5)  # until the next scrape
    assert not missing


@pytest.mark.skipif(PROMTOOL is None, reason="Debian's package prometheus is not installed")
async def test_promtool_finds_nothing_wrong_with_the_exposition(system: System, caller: Caller) -> None:
    await use_everything(caller)
    async with aiohttp.ClientSession() as session:
        for url in (system.auth_url, system.gateway_url):
            async with session.get(f"{url}/metrics") as response:
                text = await response.read()
            checked = await asyncio.to_thread(
                subprocess.run, [PROMTOOL or "", "check", "metrics"], input=text, capture_output=True, check=False
            )
            problems = checked.stderr.decode().splitlines() + checked.stdout.decode().splitlines()
            # names that the platform team's queries fix are as they are
            assert [line for line in problems if "error" in line.lower() and "parsing" in line.lower()] == []
