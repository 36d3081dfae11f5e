"""The metrics of Play Integrity."""

from __future__ import annotations

from services.auth.play.verdict import Step
from shared.service.fetch import REASONS
from shared.telemetry.metrics import Registry

RESULTS = ("success", "invalid", "unavailable")


class PlayMetrics:
    def __init__(self, registry: Registry) -> None:
        self.latency = registry.histogram(
            "validate_play_latency_seconds", "Time to verify an install by Play Integrity.", ("result",)
        )
        self.latency.preset_all(RESULTS)
        self.rejections = registry.counter(
            "play_rejections_total", "Installs rejected, by the step that caught them.", ("step",)
        )
        self.rejections.preset_all(list(Step))
        self.requests = registry.counter(
            "play_google_requests_total",
            "Requests to Google, for access tokens and to decode integrity tokens, by how they ended.",
            ("endpoint", "result"),
        )
        self.requests.preset_all(("token", "decode"), ("success", "refused", "not_sent", *REASONS))

    def by_step(self) -> dict[str, int]:
        """The rejections of this process."""
        return {step: int(self.rejections.value(step)) for step in map(str, Step)}
