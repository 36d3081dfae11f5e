"""The metrics of FxA's events."""

from __future__ import annotations

from services.auth.fxa.security_events import TYPES, Reason
from shared.telemetry.metrics import Registry


class EventMetrics:
    def __init__(self, registry: Registry) -> None:
        self.events = registry.counter("fxa_events_total", "Events of FxA that were taken, by type.", ("type",))
        self.refusals = registry.counter(
            "fxa_event_refusals_total", "Deliveries of events that were refused, by reason.", ("reason",)
        )
        self.failures = registry.counter(
            "fxa_event_failures_total",
            "Deliveries of events that could not be checked or committed, which FxA sends again.",
            ("dependency",),
        )
        self.events.preset_all(TYPES)
        self.refusals.preset_all(list(Reason))
        self.failures.preset_all(("fxa", "postgres", "redis"))
