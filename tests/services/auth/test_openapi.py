"""The OpenAPI document of auth against auth itself: requests made from it meet no 5xx and nothing undocumented."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.services.auth.admin.conftest import ADMIN_SETTINGS, USER, Rows, bearer
from tests.services.auth.conftest import StartAuth

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = 300 if os.environ.get("MLPA_TEST_FULL") else 15
CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.response_headers_conformance,
]
UNLIMITED = dict.fromkeys(
    (
        "exchange_limit_per_identity",
        "exchange_limit_per_source",
        "challenge_limit_per_source",
        "enroll_limit_per_source",
    ),
    0,
)


@pytest.fixture
def rows(postgres_url: str) -> Rows:
    return Rows(postgres_url)


async def test_requests_made_from_the_document_get_what_it_says(start_auth: StartAuth, rows: Rows) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, **UNLIMITED)
    rows.user()
    rows.request("one")
    _, document, _ = await auth.ask("GET", "/openapi.json")
    tried = await asyncio.to_thread(try_all, document, auth.url)
    assert {path for _, path in tried} == set(document["paths"])
    assert rows.run("select count(*) from users where user_id = %s", USER) == [(1,)]


def try_all(document: dict[str, Any], url: str) -> list[tuple[str, str]]:
    schema = schemathesis.openapi.from_dict(document)
    tried = []
    for result in schema.get_all_operations():
        operation = result.ok()
        try_operation(operation, url)
        tried.append((operation.method, operation.path))
    return tried


def try_operation(operation: Any, url: str) -> None:
    cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
    if operation.body or operation.query:
        cases |= operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def once(case: Any) -> None:
        response = case.call(base_url=url, headers=bearer(), timeout=10)
        case.validate_response(response, checks=CHECKS)

    once()
