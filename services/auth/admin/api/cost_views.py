"""The costs as a file: /admin/costs.csv."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import hdrs, web

from services.auth.admin.access import callers
from services.auth.admin.api.requests import COMMON, MALFORMED, one_each, operation
from services.auth.usage.costs import COSTS, DIMENSIONS, Cost, Span, dimensions
from services.auth.usage.services import USAGE
from shared.domain.money import usd_text
from shared.errors import DependencyUnavailable
from shared.telemetry.openapi import Answer, Parameter

_BY = "day,service_type,model"
_FIGURES = ("requests", "prompt_tokens", "completion_tokens", "cost_usd")
#: Lines that are written at once.
_LINES = 200
#: A spreadsheet takes a cell that begins so for a formula (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


async def costs_csv(request: web.Request) -> web.StreamResponse:
    """The sums, written in parts. If PostgreSQL fails midway, the connection is aborted: the file is not complete."""
    await callers.by_key_or_session(request)
    query = one_each(request, ("from", "to", "by"))
    by, span = dimensions(query.get("by", _BY)), Span.of(query, request.app[USAGE].now())
    parts = request.app[COSTS].slices(span, by)
    part: list[Cost] | None = await anext(parts)
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/csv; charset=utf-8",
            "Content-Disposition": f'attachment; filename="mlpa-costs-{span.first}-{span.last}.csv"',
        }
    )
    await response.prepare(request)
    if request.method == hdrs.METH_HEAD:
        return response
    await response.write(_line((*by, *_FIGURES)).encode())
    try:
        while part is not None:
            for at in range(0, len(part), _LINES):
                await response.write("".join(map(_cost, part[at : at + _LINES])).encode())
                await asyncio.sleep(0)
            part = await anext(parts, None)
    except DependencyUnavailable as error:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionAbortedError from error
    await response.write_eof()
    return response


def _cost(cost: Cost) -> str:
    figures = (cost.requests, cost.prompt_tokens, cost.completion_tokens, usd_text(cost.cost_nano))
    return _line((*cost.of, *map(str, figures)))


def _line(cells: Sequence[str]) -> str:
    return f"{','.join(map(cell, cells))}\r\n"


def cell(text: str) -> str:
    """A cell of RFC 4180; one that would be a formula is quoted, and begins with an apostrophe."""
    if text.startswith(_FORMULA):
        text = f"'{text}"
    elif not any(char in text for char in ',"\r\n'):
        return text
    return '"{}"'.format(text.replace('"', '""'))


OPERATIONS = [
    operation(
        *("Costs", "GET /admin/costs.csv", costs_csv, "Spend, requests and tokens as CSV"),
        {200: Answer("Lines by the dimensions, then the sums", {"type": "string"}, "text/csv"), **COMMON, **MALFORMED},
        Parameter("from", "The first day (UTC), or a time; six days before the last day if missing."),
        Parameter("to", "The last day (UTC), or a time, which is excluded; today if missing."),
        Parameter("by", f"Some of `{'`, `'.join(DIMENSIONS)}`, comma-separated; `{_BY}` if missing."),
        description="For a key, or a session of the console. Lines are in the order of days, if the day is asked for. "
        "Sums are of whole hours, by the time of admission.",
    )
]
