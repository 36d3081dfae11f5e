"""deploy/METRICS.md lists exactly what the code declares, and series that queries need exist from the start."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from shared.telemetry.metrics import Page
from tests.deploy.declarations import ROOT, Declared, RecordingRegistry, both_started, log_events
from tests.doubles.litellm import LiteLLMDouble, model_row
from tests.support.exposition import series
from tests.support.service_types import toml
from tests.support.waiting import until

DOCUMENT = ROOT / "deploy" / "METRICS.md"
Started = dict[str, tuple[RecordingRegistry, str]]

#: Metrics whose labels have values that are known only once they happen, or of service types with a total budget alone.
LATE = {"client_requests_total", "model_refused"} | {
    f"budget_total_{name}" for name in ("known", "limit_usd", "reserved_usd", "spent_usd")
}
#: The background loops of each service. A new one belongs here: it shows that it runs supervised.
LOOPS = {
    "auth": {
        "service_types",
        "audit_refusals",
        "fxa_deliveries",
        "enrolling_sources",
        "fxa_key_set",
        "last_seen",
        "ledger_age",
        "loop_lag",
        "old_refusals",
        "provisioning",
        "provisioning_sweep",
        "redis_changes",
        "erasures",
        "signing_keys",
    },
    "gateway": {
        "service_types",
        "key_set",
        "ledger",
        "litellm_health",
        "loop_lag",
        "models",
        "reaper",
        "refusals",
        "renewals",
        "settlements",
        "totals",
    },
}
#: Series that must be there before the first request.
AT_START = [
    *(("auth", f'response_status_codes_total{{status_code="{status}"}}') for status in (200, 201, 401, 500, 503)),
    *(
        ("gateway", f'response_status_codes_total{{status_code="{status}"}}')
        for status in (200, 429, 500, 502, 503, 504)
    ),
    ("auth", 'requests_total{endpoint="/token",method="POST",service_type="ai"}'),
    ("auth", 'requests_total{endpoint="/verify/challenge",method="GET",service_type="none"}'),
    ("auth", 'fxa_verifications_total{verification_source="cache"}'),
    ("auth", 'fxa_verifications_total{verification_source="local"}'),
    ("auth", 'fxa_verifications_total{verification_source="remote"}'),
    ("auth", 'tokens_issued_total{amr="app_attest",service_type="memories"}'),
    ("auth", 'validate_app_assert_latency_seconds_count{result="success"}'),
    ("auth", 'in_progress_requests{endpoint="/token"}'),
    ("gateway", 'requests_total{endpoint="/v1/chat/completions",method="POST",service_type="memories"}'),
    ("gateway", 'in_progress_requests{endpoint="/v1/chat/completions"}'),
    ("gateway", 'in_progress_requests{endpoint="unmatched"}'),
    *(
        (
            "gateway",
            f'chat_completion_latency_seconds_count{{model="other",purpose="none",result="{result}",service_type="ai"}}',
        )
        for result in ("success", "error", "abort")
    ),
    ("gateway", 'chat_tokens_total{model="other",purpose="none",service_type="s2s",type="completion"}'),
    ("gateway", 'chat_completion_ttft_seconds_count{model="other"}'),
    ("gateway", 'chat_availability_total{outcome="failure",reason="unavailable"}'),
    ("gateway", 'dependency_errors_total{dependency="redis"}'),
    ("gateway", 'budget_spend_usd_total{service_type="ai"}'),
]


@pytest.fixture
async def started(tmp_path: Path, postgres_url: str, redis_url: str) -> AsyncIterator[Started]:
    async with both_started(tmp_path, postgres_url, redis_url) as services:
        yield services


def declared(started: Started) -> dict[str, tuple[Declared, str]]:
    """``{name: (kind and labels, the service that has it)}``."""
    (auth, _), (gateway, _) = started["auth"], started["gateway"]
    found = {}
    for name in sorted(auth.declared.keys() | gateway.declared.keys()):
        where = (
            "both"
            if name in auth.declared and name in gateway.declared
            else "auth"
            if name in auth.declared
            else "gateway"
        )
        found[name] = (auth.declared.get(name) or gateway.declared[name]), where
    return found


async def exposed(url: str) -> set[str]:
    """Every series that a service exposes."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        return series(await response.read())


@pytest.fixture
async def large(tmp_path: Path, postgres_url: str, redis_url: str) -> AsyncIterator[tuple[RecordingRegistry, str]]:
    """A gateway with 30 models and 10 service types, each of which may use all of them for 6 purposes."""
    rows = tmp_path / "service_types.toml"
    rows.write_text("".join(toml(f"type-{number}", purposes=_PURPOSES) for number in range(10)))
    async with LiteLLMDouble() as double:
        double.models = [model_row(f"provider/model-{number}") for number in range(30)]
        options = {"service_types": rows, "litellm_api_base": double.url, "model_info_seconds": 1}
        async with both_started(tmp_path, postgres_url, redis_url, **options) as services:
            registry, url = services["gateway"]
            await until(lambda: b'model="provider/model-29"' in registry.render(), 20)  # read in the background
            yield registry, url


_PURPOSES = ["chat", "summary", "search", "title", "translation", "tabs"]


async def test_the_page_of_a_large_gateway_stays_small(large: tuple[RecordingRegistry, str]) -> None:
    registry, url = large
    size = len(await exposed(url))
    print(f"{size} series of a gateway with 30 models, 10 service types and 6 purposes")
    assert size < 3300
    page = registry.render().decode()  # which has every value of every label all the same
    for number in range(10):
        for purpose in ("none", "other", "chat", "tabs"):
            assert f'purpose="{purpose}",service_type="type-{number}",type="prompt"' in page


async def test_a_scrape_leaves_the_loop_to_others(large: tuple[RecordingRegistry, str]) -> None:
    """Even of the page as it may grow when every combination has been seen."""
    registry, _ = large
    many = registry.histogram("many_seconds", "Every combination.", ("model", "purpose"))
    many.preset_all([f"model-{number}" for number in range(300)], [f"purpose-{number}" for number in range(20)])
    holds: list[float] = []
    scraping = True

    async def watch() -> None:
        while scraping:  # in time of our own: what else runs on the machine does not count
            started = time.thread_time()
            await asyncio.sleep(0)
            holds.append(time.thread_time() - started)

    watching = asyncio.create_task(watch())
    for _ in range(2):  # the second time it is known how each line begins
        holds.clear()
        started = time.thread_time()
        size = len(await Page(registry).get())
        took = time.thread_time() - started
        print(f"a scrape of {size / 1e6:.1f} MB: {took * 1e3:.0f} ms, the loop held for {max(holds) * 1e3:.1f} ms")
        assert sorted(holds)[-4] < 0.01  # but for collections of garbage, a slice takes half a millisecond
    scraping = False
    await watching


async def test_the_document_has_every_metric_as_it_is_declared(started: Started) -> None:
    rows = [
        f"| `{name}` | {what.kind} | {', '.join(f'`{label}`' for label in what.labels)} | {where} | {what.doc} |"
        for name, (what, where) in declared(started).items()
    ]
    shown = [
        line
        for line in DOCUMENT.read_text().splitlines()
        if re.match(r"\| `[a-z_]+` \| (counter|gauge|histogram) ", line)
    ]
    assert shown == rows, "the table of deploy/METRICS.md should be:\n" + "\n".join(rows)


async def test_every_metric_has_series_before_the_first_request(started: Started) -> None:
    empty = set()
    for registry, url in started.values():
        seen = {re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", line) for line in await exposed(url)}
        empty |= registry.declared.keys() - seen - LATE
    assert empty == set()


async def test_series_of_known_values_are_there_before_the_first_request(started: Started) -> None:
    seen = {name: await exposed(url) for name, (_, url) in started.items()}
    assert [(name, wanted) for name, wanted in AT_START if wanted not in seen[name]] == []


def test_the_document_has_every_log_event() -> None:
    table = DOCUMENT.read_text().partition("## Log events")[2]
    shown = dict(re.findall(r"^\| `([^`]+)` \| ([a-z]+) \|", table, re.MULTILINE))
    assert shown == log_events()


def test_log_events_have_names_of_one_style() -> None:
    assert [event for event in log_events() if not re.fullmatch(r"[a-z]+(_[a-z]+)*", event)] == []


def test_every_background_loop_runs_supervised(started: Started) -> None:
    for name, (registry, _) in started.items():
        page = registry.render().decode()
        assert set(re.findall(r'background_failures_total\{loop="(\w+)"\} 0', page)) == LOOPS[name]
