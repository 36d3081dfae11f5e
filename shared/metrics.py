"""The metrics of one process: aioprometheus, made safe to expose and cheap to update.

Every metric is declared once, with its label names; updates name the label values in that order. A series of
known values is made at start (``preset``), so that a rate over it exists before its first event.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import Any

from aioprometheus import collectors
from aioprometheus.formats.text import TextFormatter
from aioprometheus.histogram import Histogram as Buckets

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STREAM_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class _SafeFormatter(TextFormatter):
    """The text format with label values escaped, which aioprometheus leaves out."""

    def _format_line(self, name: str, labels: Any, value: Any, const_labels: Any) -> str:
        escaped = {key: _escape(str(text)) for key, text in labels.items()} if labels else labels
        line: str = super()._format_line(name, escaped, value, const_labels)
        return line


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class _Metric:
    """Label values to the collector's own key, remembered, since aioprometheus serialises labels at each call."""

    def __init__(self, collector: collectors.Collector, labels: Sequence[str]) -> None:
        self._collector = collector
        self._labels = tuple(labels)
        self._series: dict[tuple[str, ...], Any] = {}

    def _named(self, values: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self._labels, values, strict=True))

    def preset_all(self, *choices: Sequence[str]) -> None:
        """Make the series of every combination of the given label values."""
        for values in product(*choices):
            self.preset(*values)

    def preset(self, *values: str) -> None:
        """Make one series, at 0."""
        raise TypeError("declare a Counter, a Gauge or a Histogram")


class _Number(_Metric):
    def _add(self, values: tuple[str, ...], by: float) -> None:
        key = self._series.get(values)
        if key is None:
            key = self._key(values)
        store = self._collector.values.store
        store[key] = store[key] + by

    def _key(self, values: tuple[str, ...]) -> Any:
        self._collector.set_value(self._named(values), 0)
        key = next(reversed(self._collector.values.store))  # the one just made: dicts keep their order
        self._series[values] = key
        return key

    def preset(self, *values: str) -> None:
        if values not in self._series:
            self._key(values)

    def value(self, *values: str) -> float:
        """What is exposed for these label values; 0 for a series that isn't there."""
        key = self._series.get(values)
        return 0.0 if key is None else float(self._collector.values.store[key])


class Counter(_Number):
    def inc(self, *values: str, by: float = 1) -> None:
        self._add(values, by)


class Gauge(_Number):
    def set(self, value: float, *values: str) -> None:
        self.preset(*values)
        self._collector.values.store[self._series[values]] = value

    def inc(self, *values: str) -> None:
        self._add(values, 1)

    def dec(self, *values: str) -> None:
        self._add(values, -1)


class Histogram(_Metric):
    def __init__(self, collector: collectors.Histogram, labels: Sequence[str]) -> None:
        super().__init__(collector, labels)
        self._buckets = collector.upper_bounds

    def observe(self, value: float, *values: str) -> None:
        series = self._series.get(values)
        if series is None:
            series = self._make(values)
        series.observe(value)

    def _make(self, values: tuple[str, ...]) -> Any:
        series = Buckets(*self._buckets)
        self._collector.set_value(self._named(values), series)
        self._series[values] = series
        return series

    def preset(self, *values: str) -> None:
        if values not in self._series:
            self._make(values)

    def count(self, *values: str) -> int:
        """How many observations these label values have."""
        series = self._series.get(values)
        return 0 if series is None else int(series.observations)


class Registry:
    """All metrics of a process. A name can be declared once."""

    def __init__(self) -> None:
        self._registry = collectors.Registry()

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
        metric = Counter(collectors.Counter(name, doc, registry=self._registry), labels)
        if not labels:
            metric.preset()
        return metric

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
        metric = Gauge(collectors.Gauge(name, doc, registry=self._registry), labels)
        if not labels:
            metric.preset()
        return metric

    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS
    ) -> Histogram:
        collector = collectors.Histogram(name, doc, buckets=buckets, registry=self._registry)
        metric = Histogram(collector, labels)
        if not labels:
            metric.preset()
        return metric

    @cached_property
    def background_failures(self) -> Counter:
        """Declared here, since all loops of a process count in it (``shared.background``)."""
        return self.counter("background_failures_total", "Unexpected errors of background loops.", ("loop",))

    def render(self) -> bytes:
        """The Prometheus text format 0.0.4, UTF-8."""
        return _SafeFormatter().marshall(self._registry)


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
