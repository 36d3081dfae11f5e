"""POST /fxa/events."""

from __future__ import annotations

from aiohttp import web

from services.auth.errors import ErrorBody
from services.auth.events.services import FXA_EVENTS
from services.auth.limits.services import LIMITS
from shared.service.proxies import client_address
from shared.telemetry.openapi import Answer, Operation

#: The kind of limit on refused deliveries of a source. Good ones have none: FxA sends all of them from few addresses.
DOOR = "fxa_events"


async def deliver(request: web.Request) -> web.Response:
    source = client_address(request)
    async with request.app[LIMITS].failures(DOOR, source):
        await request.app[FXA_EVENTS].deliver(_bearer(request), source)
    return web.Response()


def _bearer(request: web.Request) -> str | None:
    given = request.headers.getall("Authorization", [])
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


OPERATIONS = [
    Operation(
        "POST",
        "/fxa/events",
        deliver,
        "Take FxA's events about an account",
        {
            200: Answer("Every event in the token is committed, now or before"),
            400: Answer("`invalid_request`: a token of FxA's for this service whose content is malformed", ErrorBody),
            401: Answer(
                "`invalid_token`: not a Security Event Token of FxA's for this service, or not of the last 10 minutes",
                ErrorBody,
                headers=["WWW-Authenticate"],
            ),
            429: Answer("`slow_down`: too many refused ones of this source", ErrorBody, headers=["Retry-After"]),
            503: Answer(
                "It could not be checked, or not all of it committed: send it again", ErrorBody, headers=["Retry-After"]
            ),
        },
        tag="Firefox accounts",
        security="security_event",
    )
]
