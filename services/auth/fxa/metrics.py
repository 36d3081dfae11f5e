"""The metrics of FxA verification."""

from __future__ import annotations

from typing import get_args

from services.auth.fxa.models import Source
from shared.telemetry.metrics import Registry

SOURCES: tuple[Source, ...] = get_args(Source)
RESULTS = ("success", "invalid", "unavailable")
#: Reasons for a request to FxA without a usable answer.
FAILURES = ("connection", "timeout", "status", "malformed", "rate_limited", "too_large")


class FxAMetrics:
    def __init__(self, registry: Registry) -> None:
        self.verifications = registry.counter(
            "fxa_verifications_total", "Answers about FxA tokens, by their source.", ("verification_source",)
        )
        self.latency = registry.histogram(
            "validate_fxa_latency_seconds", "Time to verify an FxA token.", ("result", "verification_source")
        )
        self.breaker = registry.gauge(
            "fxa_breaker_state", "Circuit breaker of FxA's verify endpoint: 0 closed, 1 half-open, 2 open."
        )
        self.places = registry.gauge(
            "fxa_places", "Verifications that may be with FxA at a time: halved when it asks for less."
        )
        self.jwks_age = registry.gauge(
            "fxa_jwks_age_seconds", "Age of FxA's key set that is in use; -1 before there is one."
        )
        self.failures = registry.counter(
            "fxa_request_failures_total", "Requests to FxA without a usable answer.", ("endpoint", "reason")
        )
        self.refused_calls = registry.counter(
            "fxa_verify_not_sent_total",
            "Verifications not sent to FxA: breaker open, or all places taken.",
            ("reason",),
        )
        self.cache_failures = registry.counter(
            "fxa_cache_failures_total", "Redis commands of the FxA cache that failed or were skipped.", ("reason",)
        )
        self.verifications.preset_all(SOURCES)
        self.latency.preset_all(RESULTS, SOURCES)
        self.failures.preset_all(("jwks", "verify"), FAILURES)
        self.refused_calls.preset_all(("open", "busy"))
        self.cache_failures.preset_all(("error", "timeout", "open"))
        self.jwks_age.set(-1)
