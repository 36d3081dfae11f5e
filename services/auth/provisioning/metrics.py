"""The metrics of provisioning."""

from __future__ import annotations

from shared.telemetry.metrics import Registry

RESULTS = ("success", "failure", "dropped")


class ProvisioningMetrics:
    def __init__(self, registry: Registry) -> None:
        self.pending = registry.gauge(
            "litellm_provisioning_pending", "Users who entered and wait to be made customers of LiteLLM."
        )
        self.results = registry.counter(
            "litellm_provisioning_total",
            "Users made customers of LiteLLM (success), attempts that failed, users left for later as too many waited.",
            ("result",),
        )
        self.up = registry.gauge(
            "litellm_provisioning_up", "Whether LiteLLM did what provisioning last asked of it: 1 or 0."
        )
        self.results.preset_all(RESULTS)
        self.up.set(1)
