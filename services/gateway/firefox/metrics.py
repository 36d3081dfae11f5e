"""The use of the dialect: requests by client and credential."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from services.gateway.firefox.credentials import KIND, KINDS, kind_of
from services.gateway.firefox.dialect import speaks
from shared.service.web import ERROR, OUTCOMES, outcome_of
from shared.telemetry.metrics import Registry


def counting(registry: Registry) -> Middleware:
    """The middleware that counts requests of shipped Firefox clients, around the one that answers errors."""
    requests = registry.counter(
        "firefox_requests_total",
        "Requests of shipped Firefox clients, which send their credential each time.",
        ("client", "credential", "outcome"),
    )
    for kind, client in KINDS.items():
        for outcome in OUTCOMES:
            requests.preset(client, kind, outcome)

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not speaks(request):
            return await handler(request)
        outcome = "abort"
        try:
            response = await handler(request)
            outcome = outcome_of(response.status)
            if outcome == "success" and ERROR in request:
                outcome = "failure"  # of a stream that broke
            return response
        finally:
            kind = request.get(KIND) or kind_of(request)  # it may have been refused before its credential was read
            requests.inc(KINDS[kind], kind, outcome)

    return count
