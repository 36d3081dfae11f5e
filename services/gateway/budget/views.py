"""GET /v1/budget: what a user may still spend."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from aiohttp import web

from services.gateway.dialects import authenticate
from services.gateway.error_body import AUTHENTICATED
from services.gateway.keys import BUDGETS
from shared.domain.money import nano_to_usd
from shared.telemetry.openapi import Answer, Operation


class Limit(msgspec.Struct, frozen=True):
    """A limit of 0 is none; then nothing is counted, and ``remaining`` is 0 too."""

    limit: int
    remaining: int


class Limits(msgspec.Struct, frozen=True):
    rpm: Limit
    tpm: Limit


class Budget(msgspec.Struct, frozen=True):
    """Money in USD, with at most 9 decimals."""

    service_type: str
    max_budget_usd: float
    spent_usd: float
    reserved_usd: float
    remaining_usd: float
    resets_at: str
    limits: Limits


async def budget(request: web.Request) -> web.Response:
    principal = await authenticate(request)
    state = await request.app[BUDGETS].state(principal)
    rates = state.rate_limits
    body = Budget(
        principal.service_type.name,
        nano_to_usd(state.max_budget_nano),
        nano_to_usd(state.spent_nano),
        nano_to_usd(state.reserved_nano),
        nano_to_usd(state.remaining_nano),
        datetime.fromtimestamp(state.resets_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        Limits(
            Limit(rates.requests_limit, rates.requests_remaining), Limit(rates.tokens_limit, rates.tokens_remaining)
        ),
    )
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


OPERATIONS = [
    Operation(
        "GET",
        "/v1/budget",
        budget,
        "What this user may still spend in the current period",
        {200: Answer("The budget", Budget), **AUTHENTICATED},
        tag="Budget",
        security="access_token",
    )
]
