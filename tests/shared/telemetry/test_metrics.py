"""The metrics page of a process, as Prometheus reads it."""

from __future__ import annotations

import asyncio
import itertools
import re

import pytest

from shared.telemetry.metrics import KEPT_SECONDS, Counter, Gauge, Histogram, Page, Registry

_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\.)*)"')
_ESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def lines(registry: Registry) -> list[str]:
    return [line for line in registry.render().decode().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("value", ['a"b', "a\\b", "a\nb", '\\"\n\\', 'x"} 1\nforged_total 1', "ü"])
def test_a_label_value_is_read_back_as_it_was_whatever_it_holds(value: str) -> None:
    registry = Registry()
    registry.counter("things_total", "Things.", ("model",)).inc(value)
    [line] = lines(registry)
    [(name, escaped)] = _LABEL.findall(line)
    assert (name, re.sub(r"\\.", lambda found: _ESCAPED[found[0]], escaped)) == ("model", value)
    assert line.startswith("things_total{") and line.endswith("} 1")


def test_each_metric_has_its_help_and_its_type() -> None:
    registry = Registry()
    registry.counter("b_total", "Counted.")
    registry.gauge("a", "Measured.")
    text = registry.render().decode()
    assert "# HELP a Measured.\n# TYPE a gauge\na 0\n" in text
    assert "# HELP b_total Counted.\n# TYPE b_total counter\nb_total 0\n" in text
    assert text.endswith("\n")


def test_a_metric_without_labels_is_there_from_the_start() -> None:
    registry = Registry()
    registry.counter("a_total", "")
    registry.gauge("b", "")
    registry.histogram("c_seconds", "", buckets=(1.0,))
    assert lines(registry) == [
        "a_total 0",
        "b 0",
        'c_seconds_bucket{le="1.0"} 0.0',
        'c_seconds_bucket{le="+Inf"} 0.0',
        "c_seconds_count 0.0",
        "c_seconds_sum 0.0",
    ]


def test_series_with_labels_are_there_once_they_are_preset_and_keep_what_they_count() -> None:
    registry = Registry()
    counter = registry.counter("things_total", "", ("model", "result"))
    assert lines(registry) == []
    counter.inc("m", "ok", by=2)
    counter.preset_all(["m", "n"], ["ok", "error"])
    assert sorted(lines(registry)) == [
        'things_total{model="m",result="error"} 0',
        'things_total{model="m",result="ok"} 2',
        'things_total{model="n",result="error"} 0',
        'things_total{model="n",result="ok"} 0',
    ]


def test_a_histogram_puts_each_value_into_every_bucket_that_reaches_it() -> None:
    registry = Registry()
    histogram = registry.histogram("h", "", ("kind",), buckets=(1.0, 2.0))
    histogram.preset("a")
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value, "a")
    assert histogram.count("a") == 4
    assert histogram.count("b") == 0
    assert lines(registry) == [
        'h_bucket{kind="a",le="1.0"} 2.0',
        'h_bucket{kind="a",le="2.0"} 3.0',
        'h_bucket{kind="a",le="+Inf"} 4.0',
        'h_count{kind="a"} 4.0',
        'h_sum{kind="a"} 12.0',
    ]


def test_a_gauge_goes_up_and_down() -> None:
    gauge = Registry().gauge("g", "", ("kind",))
    gauge.set(5, "a")
    gauge.inc("a")
    gauge.dec("b")
    assert (gauge.value("a"), gauge.value("b"), gauge.value("c")) == (6, -1, 0)


def test_a_counter_can_be_read_from_elsewhere() -> None:
    registry = Registry()
    read = iter((3, 5))
    registry.read(registry.counter("lost_total", ""), lambda: next(read))
    assert lines(registry) == ["lost_total 3"]
    assert lines(registry) == ["lost_total 5"]


async def test_a_page_is_made_once_for_all_who_ask_within_a_second() -> None:
    registry = Registry()
    made = itertools.count()
    registry.read(registry.counter("pages_total", ""), lambda: next(made))
    page = Page(registry)
    pages = [*await asyncio.gather(*(page.get() for _ in range(10))), await page.get()]
    assert len(set(pages)) == 1
    await asyncio.sleep(KEPT_SECONDS + 0.1)
    assert await page.get() != pages[0]


async def test_series_may_be_made_while_a_page_is_made() -> None:
    registry = Registry()
    counter = registry.counter("things_total", "", ("number",))
    counter.preset_all([str(number) for number in range(1000)])
    making = asyncio.create_task(Page(registry).get())
    for number in range(1000, 1010):
        await asyncio.sleep(0)
        counter.inc(str(number))
    assert (await making).count(b"things_total{") >= 1000
    assert registry.render().count(b"things_total{") == 1010


async def test_who_stops_waiting_for_a_page_takes_it_from_nobody() -> None:
    registry = Registry()
    registry.counter("things_total", "", ("number",)).preset_all([str(number) for number in range(1000)])
    page = Page(registry)
    first, second = asyncio.create_task(page.get()), asyncio.create_task(page.get())
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).count(b"things_total{") == 1000


def test_a_name_is_declared_once_and_labels_are_given_in_full() -> None:
    registry = Registry()
    counter = registry.counter("a_total", "", ("x", "y"))
    with pytest.raises(ValueError):
        registry.counter("a_total", "")
    with pytest.raises(ValueError):
        counter.inc("only one")
    assert (Counter, Gauge, Histogram) == tuple(
        type(one) for one in (counter, registry.gauge("b", ""), registry.histogram("c", ""))
    )
