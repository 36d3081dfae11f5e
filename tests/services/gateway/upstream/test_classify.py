"""Errors of LiteLLM whose headers decide."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from services.gateway.upstream.classify import UpstreamFailure, classify


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("23", "23"), ("0", "1"), ("99999", "3600"), ("soon", None), ("-1", None), ("nan", None), (None, None)],
)
def test_a_providers_retry_after_is_passed_on(given: str | None, seconds: str | None) -> None:
    headers = {} if given is None else {"llm_provider-retry-after": given}
    error = classify(UpstreamFailure(429, "", "throttling_error", "429", None), headers, seconds_to_reset=1)
    assert error.code == "upstream_rate_limited"
    assert error.headers.get("Retry-After") == seconds


def test_a_date_is_passed_on_in_seconds() -> None:
    headers = {"retry-after": formatdate(time.time() + 100, usegmt=True)}
    error = classify(UpstreamFailure(429, "", "throttling_error", "429", None), headers, seconds_to_reset=1)
    assert 95 <= int(error.headers["Retry-After"]) <= 101
