"""The metrics of the catalogue, declared once per process."""

from __future__ import annotations

from collections.abc import Mapping

from shared.telemetry.metrics import Registry


class CatalogueMetrics:
    def __init__(self, registry: Registry) -> None:
        self._models = registry.gauge("models_priced", "Models that may be asked.")
        self._refused = registry.gauge(
            "model_refused", "1 for a model whose price is missing or not understood.", ("model",)
        )
        self._shown: set[str] = set()

    def show(self, priced: int, refused: Mapping[str, str]) -> None:
        self._models.set(priced)
        for name in self._shown - refused.keys():
            self._refused.set(0, name)
        for name in refused:
            self._refused.set(1, name)
        self._shown |= refused.keys()
