"""deploy/METRICS.md tells exactly what the code declares, and the series that queries need are there from the start."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.deploy.declarations import ROOT, Declared, RecordingRegistry, both_started, log_events

DOCUMENT = ROOT / "deploy" / "METRICS.md"
Started = dict[str, tuple[RecordingRegistry, str]]

#: Name, type, labels and service as the contract of the platform team's queries has them.
FIXED = {
    "requests_total": ("counter", ("method", "endpoint", "service_type"), "both"),
    "in_progress_requests": ("gauge", ("endpoint",), "both"),
    "response_status_codes_total": ("counter", ("status_code",), "both"),
    "request_latency_seconds": ("histogram", ("method", "endpoint"), "both"),
    "validate_challenge_latency_seconds": ("histogram", ("result",), "auth"),
    "validate_app_attest_latency_seconds": ("histogram", ("result",), "auth"),
    "validate_app_assert_latency_seconds": ("histogram", ("result",), "auth"),
    "validate_fxa_latency_seconds": ("histogram", ("result", "verification_source"), "auth"),
    "fxa_verifications_total": ("counter", ("verification_source",), "auth"),
    "chat_completion_latency_seconds": ("histogram", ("result", "model", "service_type", "purpose"), "gateway"),
    "chat_completion_ttft_seconds": ("histogram", ("model",), "gateway"),
    "chat_tokens_total": ("counter", ("type", "model", "service_type", "purpose"), "gateway"),
    "tokens_issued_total": ("counter", ("amr", "service_type"), "auth"),
    "chat_request_rejections_total": ("counter", ("reason", "model", "service_type"), "gateway"),
    "chat_tokens_per_request": ("histogram", ("type", "model"), "gateway"),
    "chat_tool_calls_total": ("counter", ("model", "service_type"), "gateway"),
    "chat_availability_total": ("counter", ("outcome", "reason"), "gateway"),
    "gateway_overhead_seconds": ("histogram", (), "gateway"),
    "budget_spend_usd_total": ("counter", ("service_type",), "gateway"),
    "budget_overrun_usd_total": ("counter", (), "gateway"),
    "token_validation_latency_seconds": ("histogram", ("result", "source"), "gateway"),
    "dependency_errors_total": ("counter", ("dependency",), "both"),
    "build_info": ("gauge", ("service", "version", "commit"), "both"),
}
#: Metrics whose labels have values that are known only once they happen.
LATE = {"model_refused", "app_attest_rejections_total"}
#: The background loops of each service. A new one belongs here: it shows that it runs supervised.
LOOPS = {
    "auth": {
        "fxa_key_set",
        "last_seen",
        "provisioning",
        "provisioning_sweep",
        "redis_changes",
        "signing_keys",
        "usage",
    },
    "gateway": {"key_set", "ledger", "litellm_health", "models", "reaper", "renewals", "settlements", "totals"},
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
    """``{name: (what it is, which service has it)}``."""
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


async def series(url: str) -> set[str]:
    """Every series that a service exposes, labels in the order of their names."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        lines = [line.rpartition(" ")[0] for line in (await response.text()).splitlines() if not line.startswith("#")]
    found = set()
    for line in lines:
        name, _, labels = line.partition("{")
        pairs = sorted(re.findall(r'[a-z_]+="(?:[^"\\]|\\.)*"', labels))
        found.add(f"{name}{{{','.join(pairs)}}}" if pairs else name)
    return found


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


async def test_the_names_and_labels_that_the_platform_teams_queries_use_are_exact(started: Started) -> None:
    found = {name: (what.kind, what.labels, where) for name, (what, where) in declared(started).items()}
    assert {name: found.get(name) for name in FIXED} == FIXED


async def test_every_metric_has_series_before_the_first_request(started: Started) -> None:
    empty = set()
    for registry, url in started.values():
        seen = {re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", line) for line in await series(url)}
        empty |= registry.declared.keys() - seen - LATE
    assert empty == set()


async def test_series_of_known_values_are_there_before_the_first_request(started: Started) -> None:
    seen = {name: await series(url) for name, (_, url) in started.items()}
    assert [(name, wanted) for name, wanted in AT_START if wanted not in seen[name]] == []


def test_the_document_has_every_log_event() -> None:
    table = DOCUMENT.read_text().partition("## Log events")[2]
    shown = dict(re.findall(r"^\| `([^`]+)` \| ([a-z]+) \|", table, re.MULTILINE))
    assert shown == log_events()


def test_every_background_loop_runs_supervised(started: Started) -> None:
    for name, (registry, _) in started.items():
        page = registry.render().decode()
        assert set(re.findall(r'background_failures_total\{loop="(\w+)"\} 0', page)) == LOOPS[name]
