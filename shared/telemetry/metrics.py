"""The metrics of one process: aioprometheus, made safe to expose and cheap to update.

Every metric is declared once, with its label names; updates name the label values in that order. A series of
known values is made at start (``preset``), so that a rate over it exists before its first event.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, product
from typing import Any, TypeVar

from aioprometheus import collectors
from aioprometheus.formats.text import TextFormatter

from shared.service.flight import Kept

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STREAM_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


#: Lines that are made before the event loop gets its turn.
SLICE_LINES = 100
#: How long a page is good for, in seconds.
KEPT_SECONDS = 1.0

_M = TypeVar("_M", bound="_Metric")


class _Start(TextFormatter):
    """Formats the beginning of a sample's line: its name and its labels, whose values are escaped here."""

    def of(self, name: str, labels: Mapping[str, str]) -> str:
        escaped = {key: _escape(text) for key, text in labels.items()}
        line: str = self._format_line(name, escaped, "", {})
        return f"{line} "


_start = _Start().of


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class _Metric:
    """A metric that holds its series by their label values: aioprometheus serialises labels at each call."""

    def __init__(self, collector: collectors.Collector, labels: Sequence[str]) -> None:
        self._collector = collector
        self._labels = tuple(labels)
        self._series: dict[tuple[str, ...], Any] = {}
        self._starts: dict[tuple[str, ...], Any] = {}

    @property
    def name(self) -> str:
        return str(self._collector.name)

    def preset_all(self, *choices: Sequence[str]) -> None:
        """Make the series of every combination of the given label values."""
        for values in product(*choices):
            self.preset(*values)

    def preset(self, *values: str) -> None:
        """Make one series, at 0."""
        if values not in self._series:
            self._make(values)

    def _make(self, values: tuple[str, ...]) -> Any:
        """:raises ValueError: there are more or fewer values than labels."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self.name} has the labels {self._labels}")
        self._series[values] = self._zero()
        return self._series[values]

    def _zero(self) -> Any:
        """A series that has counted nothing."""
        raise TypeError("declare a Counter, a Gauge or a Histogram")

    def head(self) -> list[str]:
        """The lines before the samples."""
        collector = self._collector
        return [f"# HELP {collector.name} {collector.doc}", f"# TYPE {collector.name} {collector.kind.name}"]

    def samples(self) -> Iterator[list[str]]:
        """The lines of each series. Series may be made meanwhile."""
        for values in tuple(self._series):
            starts = self._starts.get(values)
            if starts is None:
                starts = self._starts[values] = self._make_starts(dict(zip(self._labels, values, strict=True)))
            yield self._lines(starts, self._series[values])

    def _make_starts(self, labels: dict[str, str]) -> Any:
        raise NotImplementedError

    def _lines(self, starts: Any, series: Any) -> list[str]:
        raise NotImplementedError


class _Number(_Metric):
    def inc(self, *values: str, by: float = 1) -> None:
        try:
            self._series[values] += by
        except KeyError:
            self._series[values] = self._make(values) + by

    def _zero(self) -> float:
        return 0

    def _make_starts(self, labels: dict[str, str]) -> str:
        return _start(self.name, labels)

    def _lines(self, starts: str, series: float) -> list[str]:
        return [f"{starts}{series}"]

    def take(self, total: float) -> None:
        """Show a value that is counted elsewhere, for a metric without labels."""
        self._series[()] = total

    def value(self, *values: str) -> float:
        """The exposed value for these label values; 0 for a missing series."""
        return float(self._series.get(values, 0))


class Counter(_Number):
    """A number that only grows."""


class Gauge(_Number):
    def set(self, value: float, *values: str) -> None:
        if values not in self._series:
            self._make(values)
        self._series[values] = value

    def dec(self, *values: str) -> None:
        self.inc(*values, by=-1)


class Histogram(_Metric):
    """A histogram. A series is a list: how many values each bucket alone has, and their sum."""

    def __init__(self, collector: collectors.Histogram, labels: Sequence[str]) -> None:
        super().__init__(collector, labels)
        self._bounds = [*map(float, collector.upper_bounds), math.inf]

    def observe(self, value: float, *values: str) -> None:
        series = self._series.get(values)
        if series is None:
            series = self._make(values)
        series[bisect_left(self._bounds, value)] += 1
        series[-1] += value

    def _zero(self) -> list[float]:
        return [*(0 for _ in self._bounds), 0.0]

    def _make_starts(self, labels: dict[str, str]) -> list[str]:
        bounds = ["+Inf" if bound == math.inf else str(bound) for bound in self._bounds]
        buckets = [_start(f"{self.name}_bucket", {**labels, "le": bound}) for bound in bounds]
        return [*buckets, _start(f"{self.name}_count", labels), _start(f"{self.name}_sum", labels)]

    def _lines(self, starts: list[str], series: list[float]) -> list[str]:
        *each, total = series
        values = (*accumulate(each), sum(each), total)
        return [f"{start}{float(value)}" for start, value in zip(starts, values, strict=True)]

    def count(self, *values: str) -> int:
        """The number of observations with these label values."""
        return int(sum(self._series.get(values, (0, 0.0))[:-1]))


class Registry:
    """All metrics of a process. A name can be declared once."""

    def __init__(self) -> None:
        self._registry = collectors.Registry()
        self._metrics: dict[str, _Metric] = {}
        self._sources: list[tuple[Counter | Gauge, Callable[[], float]]] = []

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
        return self._add(Counter(collectors.Counter(name, doc, registry=self._registry), labels), labels)

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
        return self._add(Gauge(collectors.Gauge(name, doc, registry=self._registry), labels), labels)

    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS
    ) -> Histogram:
        collector = collectors.Histogram(name, doc, buckets=buckets, registry=self._registry)
        return self._add(Histogram(collector, labels), labels)

    def _add(self, metric: _M, labels: Sequence[str]) -> _M:
        if not labels:
            metric.preset()
        self._metrics[metric.name] = metric
        return metric

    def read(self, metric: Counter | Gauge, source: Callable[[], float]) -> None:
        """A metric without labels whose value is read elsewhere when the page is made."""
        self._sources.append((metric, source))

    @cached_property
    def background_failures(self) -> Counter:
        """Declared here, since all loops of a process count in it (``shared.service.background``)."""
        return self.counter("background_failures_total", "Unexpected errors of background loops.", ("loop",))

    def slices(self) -> Iterator[bytes]:
        """The Prometheus text format 0.0.4, UTF-8, in parts that take well under a millisecond each to make."""
        for metric, source in self._sources:
            metric.take(source())
        lines: list[str] = []
        for name in sorted(self._metrics):
            declared = self._metrics[name]
            lines += declared.head()
            for sample in declared.samples():
                lines += sample
                if len(lines) >= SLICE_LINES:
                    yield _joined(lines)
                    lines = []
        yield _joined(lines)

    def render(self) -> bytes:
        """The whole page at once."""
        return b"".join(self.slices())


def _joined(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


class Page:
    """A registry's page, made in slices between which the event loop runs, and kept for ``KEPT_SECONDS``."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._kept = Kept(self._make, KEPT_SECONDS)

    async def get(self) -> bytes:
        return await self._kept.get()

    async def _make(self) -> bytes:
        parts = []
        for part in self._registry.slices():
            parts.append(part)
            await asyncio.sleep(0)
        return b"".join(parts)


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
