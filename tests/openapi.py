"""A service's own OpenAPI document against the service: no 5xx, and nothing that the document doesn't say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = 300 if os.environ.get("MLPA_TEST_FULL") else 4
CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.response_headers_conformance,
]


def try_all(document: dict[str, Any], url: str, headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Make requests from every operation; the operations that were tried, as (method, path)."""
    schema = schemathesis.openapi.from_dict(document)
    tried = []
    for result in schema.get_all_operations():
        operation = result.ok()
        try_operation(operation, url, headers)
        tried.append((operation.method, operation.path))
    return tried


def try_operation(operation: Any, url: str, headers: Mapping[str, str]) -> None:
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
        response = case.call(base_url=url, headers=dict(headers), timeout=10)
        case.validate_response(response, checks=CHECKS)

    once()
