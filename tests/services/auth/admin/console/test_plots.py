"""Charts and the words beside them."""

from __future__ import annotations

import pytest

from services.auth.admin.console import filters, plots


def test_parts_of_a_bar_stand_on_each_other_and_stay_inside() -> None:
    chart = plots.stacked(["a", "b"], {"x": [1, 0], "y": [2, 4]}, short=["a", "b"])
    assert chart.ticks == [4, 2, 0]
    assert chart.total == 7
    assert [(bar.series, bar.y, bar.height) for bar in chart.bars] == [(0, 150, 50), (1, 50, 100), (1, 0, 200)]
    assert all(bar.x >= 0 and bar.x + bar.width <= plots.WIDTH for bar in chart.bars)
    assert chart.bars[1].title == "a, y"


def test_a_chart_of_nothing_has_no_bars() -> None:
    chart = plots.stacked(["a"], {"x": [0]}, short=["a"])
    assert (chart.bars, chart.total) == ([], 0)
    assert plots.stacked([], {}, short=[]).labels == []


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (1, 1), (1.1, 2), (3, 4), (4.5, 5), (7, 10), (0.03, 0.04), (1e9, 1e9)]
)
def test_the_top_of_a_chart_is_round(value: float, top: float) -> None:
    assert plots.ceiling(value) == pytest.approx(top)


def test_of_many_labels_some_are_shown_the_first_and_the_last_among_them() -> None:
    names = [str(number) for number in range(24)]
    labels = plots.stacked(names, {"x": [1.0] * 24}, short=names).labels
    assert (len(labels), labels[0], labels[-1]) == (5, "0", "23")


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "$0"), (1, "$0.000000001"), (511_950, "$0.00051"), (100_000_000, "$0.10"), (1_234_567_890_123, "$1,234.57")],
)
def test_money_has_as_many_decimals_as_say_something(nano: int, text: str) -> None:
    assert filters.usd(nano) == text


def test_shares_never_round_to_all_or_nothing() -> None:
    assert [filters.percent(share) for share in (0, 0.001, 0.5, 0.9999, 1, 1.07)] == [
        "0%",
        "<1%",
        "50%",
        "99%",
        "100%",
        "107%",
    ]


def test_spans_of_time_are_told_in_two_units() -> None:
    assert [filters.duration(seconds) for seconds in (-1, 0.5, 61, 86399, 90061)] == [
        "0 s",
        "0 s",
        "1 min 1 s",
        "23 h 59 min",
        "1 d 1 h",
    ]
