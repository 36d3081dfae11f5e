"""The pages of costs and of models."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlencode

from aiohttp import web

from services.auth.admin.access.sessions import Session
from services.auth.admin.console import filters, pages, plots
from services.auth.admin.console.gateways import GATEWAYS
from services.auth.admin.console.plots import Plot
from services.auth.usage.costs import COSTS, DIMENSIONS, Cost, Span
from services.auth.usage.services import USAGE
from shared.domain.outcome import Outcome
from shared.errors import DependencyUnavailable

_OTHERS = "others"
_LABELS = 10
#: Spans that are a click away: from and to how many days ago.
_SPANS = {"Today": (0, 0), "Yesterday": (1, 1), "7 days": (6, 0), "30 days": (29, 0)}
#: Series of a plot beside the others: as many as there are colours.
_SERIES = 5


@dataclass(slots=True)
class Sums:
    """The sums of one value of a dimension, over the whole span."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0

    def add(self, cost: Cost) -> None:
        self.requests += cost.requests
        self.prompt_tokens += cost.prompt_tokens
        self.completion_tokens += cost.completion_tokens
        self.cost_nano += cost.cost_nano


@pages.page
async def costs(request: web.Request, session: Session) -> web.StreamResponse:
    now = request.app[USAGE].now()
    span = Span.of(request.query, now)
    by = request.query.get("by", "")
    by = by if by in DIMENSIONS[1:] else DIMENSIONS[1]
    found = await request.app[COSTS].sums(span, ("day", by))
    values: dict[str, Sums] = defaultdict(Sums)
    total = Sums()
    for cost in found:
        values[cost.of[1]].add(cost)
        total.add(cost)
    ranked = dict(sorted(values.items(), key=lambda item: -item[1].cost_nano))
    here = {"from": span.first, "to": span.last}
    return pages.render(
        request,
        "costs.html",
        section="costs",
        span=span,
        by=by,
        dimensions=DIMENSIONS[1:],
        here=here,
        spans={label: _days(now, *days) for label, days in _SPANS.items()},
        plot=_plot(span, found, list(ranked)[:_SERIES]),
        values=ranked,
        total=total,
        dollars=filters.usd,
        csv=f"/admin/costs.csv?{urlencode({**here, 'by': f'day,{by}'})}",
        csv_all=f"/admin/costs.csv?{urlencode({**here, 'by': ','.join(DIMENSIONS)})}",
    )


def _days(now: datetime, first: int, last: int) -> dict[str, str]:
    """The days from ``first`` to ``last`` days ago, as the query of a link."""
    return {name: f"{now - timedelta(days=ago):%Y-%m-%d}" for name, ago in (("from", first), ("to", last))}


def _plot(span: Span, found: list[Cost], names: list[str]) -> Plot:
    days = [day.first for day in span.days()]
    places = {day: place for place, day in enumerate(days)}
    series: dict[str, list[float]] = {name: [0.0] * len(days) for name in (*names, _OTHERS)}
    for cost in found:
        series[cost.of[1] if cost.of[1] in names else _OTHERS][places[cost.of[0]]] += cost.cost_nano
    if not any(series[_OTHERS]):
        del series[_OTHERS]
    shown = len(days) if 2 <= len(days) <= _LABELS else 5  # a label below each bar, as long as they fit
    return plots.stacked(days, series, short=[day[5:] for day in days], shown=shown)


@dataclass(slots=True)
class Health:
    """The requests of a model in the last day."""

    requests: int = 0
    failed: int = 0

    @property
    def share(self) -> float:
        return self.failed / self.requests if self.requests else 0.0


@pages.page
async def models(request: web.Request, session: Session) -> web.StreamResponse:
    known = await request.app[GATEWAYS].models()
    now = request.app[USAGE].now()
    health: dict[str, Health] | None
    try:
        health = _health(await request.app[COSTS].sums(Span(now - timedelta(days=1), now), ("model", "outcome")))
    except DependencyUnavailable:
        health = None
    return pages.render(request, "models.html", section="models", models=known, health=health)


def _health(found: list[Cost]) -> dict[str, Health]:
    health: dict[str, Health] = defaultdict(Health)
    for cost in found:
        model, outcome = cost.of
        health[model].requests += cost.requests
        health[model].failed += cost.requests if outcome not in (Outcome.SUCCESS, Outcome.ABORT) else 0
    return health
