"""The API of service types: /service-types."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import msgspec
from aiohttp import web

from services.auth.admin.access import callers
from services.auth.admin.api.requests import COMMON, answer, operation
from services.auth.admin.times import rfc3339
from services.auth.settings import SERVICE_TYPES
from shared.domain.money import nano_to_usd
from shared.domain.service_types import ServiceType, ServiceTypeFields
from shared.telemetry.openapi import Answer


class ServiceTypeBody(ServiceTypeFields, frozen=True, kw_only=True):
    """A row of ``SERVICE_TYPES`` as this process holds it; 0 means no limit, but for ``max_budget_usd``.

    ``enforced``: whether budget and rates refuse at this moment.
    """

    enforced: bool
    enforce_until: str | None
    max_budget_usd: float
    duration_seconds: int
    total_budget_usd: float
    search_cost_usd: float
    temperature: float | None
    top_p: float | None


class ServiceTypesBody(msgspec.Struct, frozen=True):
    service_types: list[ServiceTypeBody]


async def list_service_types(request: web.Request) -> web.Response:
    await callers.by_key(request)
    now = time.time()
    return answer(ServiceTypesBody([_body(row, now) for row in request.app[SERVICE_TYPES].by_name.values()]))


def _body(row: ServiceType, now: float) -> ServiceTypeBody:
    return ServiceTypeBody(
        **row.common(),
        enforced=row.enforces(now),
        enforce_until=rfc3339(datetime.fromtimestamp(row.enforce_until, UTC)) if row.enforce_until else None,
        max_budget_usd=nano_to_usd(row.max_budget_nano),
        duration_seconds=row.duration_seconds,
        total_budget_usd=nano_to_usd(row.total_budget_nano),
        search_cost_usd=nano_to_usd(row.search_cost_nano),
        temperature=row.temperature,
        top_p=row.top_p,
    )


OPERATIONS = [
    operation(
        *("Service types", "GET /service-types", list_service_types, "The service types with their limits, in order"),
        {200: Answer("The rows", ServiceTypesBody), **{status: COMMON[status] for status in (401, 429)}},
    )
]
