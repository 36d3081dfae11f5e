"""Bar charts as geometry. The templates draw them as SVG, with a table of the same figures beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: The chart's own units. It is stretched to the width that the page has, so all text stands outside of the SVG.
WIDTH, HEIGHT = 1000, 200
_GAP = 0.22


@dataclass(frozen=True, slots=True)
class Bar:
    """One part of a stacked bar; ``series`` is the index of its series, ``value`` the figure."""

    x: float
    y: float
    width: float
    height: float
    series: int
    title: str
    value: float


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: its label and a value for each series."""

    label: str
    values: list[float]

    @property
    def total(self) -> float:
        return sum(self.values)


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart of bars. ``ticks`` are the values of the horizontal lines, from the top to 0; ``labels`` go below, spread
    evenly.
    """

    series: list[str]
    rows: list[Row]
    bars: list[Bar]
    ticks: list[float]
    labels: list[str]

    @property
    def total(self) -> float:
        return sum(row.total for row in self.rows)


def stacked(
    labels: Sequence[str], series: Mapping[str, Sequence[float]], *, short: Sequence[str], shown: int = 5
) -> Plot:
    """One stacked bar for each label, a part for each series.

    :param short: the labels as they stand below the chart, of which ``shown`` do.
    """
    names = list(series)
    rows = [Row(label, [series[name][place] for name in names]) for place, label in enumerate(labels)]
    top = ceiling(max((row.total for row in rows), default=0))
    bars = []
    step = WIDTH / max(1, len(rows))
    for place, row in enumerate(rows):
        height_below = 0.0
        for index, value in enumerate(row.values):
            if value <= 0:
                continue
            height = value / top * HEIGHT
            height_below += height
            bars.append(
                Bar(
                    round(place * step + step * _GAP / 2, 2),
                    round(HEIGHT - height_below, 2),
                    round(step * (1 - _GAP), 2),
                    round(height, 2),
                    index,
                    f"{row.label}, {names[index]}",
                    value,
                )
            )
    last = len(rows) - 1
    places = sorted({round(last * part / (shown - 1)) for part in range(shown)}) if rows else []
    return Plot(names, rows, bars, [top, top / 2, 0], [short[place] for place in places])


def ceiling(value: float) -> float:
    """The nearest of 1, 2, 4, 5, 10 times a power of ten that is not below: halves of it are round too."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 5, 10) if factor * power >= value * (1 - 1e-12))
