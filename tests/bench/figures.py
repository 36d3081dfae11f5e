"""The common part of measurements: works that take turns, and figures as text.

A figure is the median of its rounds, with the least and the most: `1.10x (1.08 to 1.13)`. A ratio is taken of each
round's own pair, so that what else the machine did then weighs on both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import TypeVar

#: Name, figure.
Row = tuple[str, str]

#: The least that a figure is made of.
ROUNDS = 5

_T = TypeVar("_T")


async def turns(*works: Callable[[], Awaitable[_T]], rounds: int = ROUNDS, warm_up: int = 0) -> list[list[_T]]:
    """Run every work once a round, forwards and backwards by turns. Returns the results, by round, in their order."""
    given: list[list[_T]] = [[] for _ in works]
    for number in range(warm_up + rounds):
        for place in range(len(works))[:: -1 if number % 2 else 1]:
            result = await works[place]()
            if number >= warm_up:
                given[place].append(result)
    return given


def spread(values: Sequence[float], unit: str = "", factor: float = 1, *, sign: str = "") -> str:
    """Median, least and most, as in `15.2 us (14.9 to 16.0)`; `sign="+"` is for differences."""
    least, middle, most = (factor * value for value in (min(values), median(values), max(values)))
    size = abs(middle)
    whole = all(isinstance(value, int) for value in values)
    digits = 0 if whole or size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    low, mid, high = (f"{value:{sign},.{digits}f}" for value in (least, middle, most))
    return f"{mid}{unit if unit in ('', 'x') else f' {unit}'} ({low} to {high})"


def beside(mine: Sequence[float], other: Sequence[float], unit: str, factor: float = 1, *, goal: str = "") -> str:
    """The ratio of ``mine`` to ``other``, which are of the same rounds, its target, and both."""
    ratios = [one / another for one, another in zip(mine, other, strict=True)]
    return f"{spread(ratios, 'x')}{_goal(goal)}; {_both(mine, other, unit, factor)}"


def more(mine: Sequence[float], other: Sequence[float], unit: str, factor: float = 1, *, goal: str = "") -> str:
    """The difference of ``mine`` and ``other``, its target, and both."""
    differences = [one - another for one, another in zip(mine, other, strict=True)]
    return f"{spread(differences, unit, factor, sign='+')}{_goal(goal)}; {_both(mine, other, unit, factor)}"


def _both(mine: Sequence[float], other: Sequence[float], unit: str, factor: float) -> str:
    return f"{spread(mine, unit, factor)} beside {spread(other, unit, factor)}"


def _goal(goal: str) -> str:
    return f", goal {goal}" if goal else ""
