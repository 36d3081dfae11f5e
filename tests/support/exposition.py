"""Reading a service's page of metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.telemetry.metrics import Registry

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def metric(page: Registry | bytes, name: str, **labels: str) -> float:
    """The sum of the series of this name that have these labels, of which the name may show some; 0 without any."""
    name, _, more = name.partition("{")
    labels |= dict(_LABEL.findall(more))
    return sum(value for found, has, value in _samples(page) if found == name and labels.items() <= has.items())


def series(page: Registry | bytes) -> set[str]:
    """The names of all series, each with its labels in the order of their names."""
    found = set()
    for name, labels, _ in _samples(page):
        pairs = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        found.add(f"{name}{{{pairs}}}" if pairs else name)
    return found


def _samples(page: Registry | bytes) -> Iterator[tuple[str, dict[str, str], float]]:
    text = page.render() if isinstance(page, Registry) else page
    for line in text.decode().splitlines():
        if not line.startswith("#"):
            start, _, value = line.rpartition(" ")
            name, _, labels = start.partition("{")
            yield name, dict(_LABEL.findall(labels)), float(value)
