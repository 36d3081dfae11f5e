"""The steps of every paid operation, and its declaration: one line of the app."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from aiohttp import web

from services.gateway.budget.models import Ask, new_id
from services.gateway.dialects import authenticate, of as dialect_of
from services.gateway.error_body import AUTHENTICATED, ErrorBody
from services.gateway.errors import InvalidModel, InvalidRequest, InvalidToken, RequestTooLarge, codes
from services.gateway.relay.collaborators import COLLABORATORS, Collaborators
from services.gateway.relay.operation import PaidOperation, permitted
from services.gateway.relay.relay import Relay
from services.gateway.settings import GatewaySettings
from shared.domain.outcome import Outcome
from shared.domain.service_types import ServiceType
from shared.errors import DependencyUnavailable, ServiceError
from shared.service.web import LOGGED, REQUEST_ID, SERVICE_TYPE, USER_ID
from shared.telemetry.metrics import Registry
from shared.telemetry.openapi import Answer, Body, Operation, Parameter

#: The model of a request that may have it, for the metrics of a refusal.
MODEL = web.RequestKey("model", str)

_RATES = [f"x-ratelimit-{which}-{of}" for of in ("requests", "tokens") for which in ("limit", "remaining", "reset")]
#: The answers of every paid operation, beside its own 200.
_ANSWERS = {
    400: Answer(f"{codes(400)}; `param` names the field", ErrorBody),
    **AUTHENTICATED,
    413: Answer(f"{codes(413)}: the body, or the prompt for the model", ErrorBody),
    429: Answer(codes(429), ErrorBody, headers=["Retry-After", "x-should-retry", *_RATES]),
    502: Answer(codes(502), ErrorBody, headers=["x-should-retry"]),
    504: Answer(codes(504), ErrorBody),
}


@dataclass(frozen=True, slots=True)
class Paid:
    """The declaration of a paid operation: its route, and how it is made when the service starts."""

    route: Operation
    make: Callable[[GatewaySettings, Registry], PaidOperation[Any, Any]]


def paid(
    make: Callable[[GatewaySettings, Registry], PaidOperation[Any, Any]],
    path: str,
    summary: str,
    answer: Answer,
    body: Body,
) -> Paid:
    """Declare a paid operation.

    :param answer: that of 200, beside the headers of rates.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        shared = request.app[COLLABORATORS]
        return await serve(request, shared, shared.operations[path])

    answers = {200: replace(answer, headers=[*_RATES, *answer.headers]), **_ANSWERS}
    purpose = Parameter("purpose", "What the request is for: a label of the metrics.", where="header")
    route = Operation(
        "POST",
        path,
        handle,
        summary,
        answers,
        tag="OpenAI",
        parameters=[purpose],
        body=body,
        security="access_token",
    )
    return Paid(route, make)


async def serve(request: web.Request, shared: Collaborators, operation: PaidOperation[Any, Any]) -> web.StreamResponse:
    """Authenticate, validate, admit, relay. Errors are raised as ServiceError until a stream has begun."""
    started = time.perf_counter()
    door = shared.bodies.door
    arrived = False
    relay: Relay | None = None
    try:
        shared.open_requests.check()
        principal = await authenticate(request, checks_body=True)
        user, row = principal.user_id, principal.service_type
        door.check(user)
        body = await shared.bodies.read(request, user)
        arrived = True
        if principal.body_sha256 is not None and hashlib.sha256(body).hexdigest() != principal.body_sha256:
            raise InvalidToken("The access token is for another request.")
        try:
            with door.passing(user):
                parse = partial(operation.parse, row=row)
                asked = await shared.bodies.parse(body, user, parse, operation.most_items)
                model = operation.model(asked, row, shared.catalogue)
                request[MODEL] = model.name
                purpose = _purpose(request, row)
                if not shared.litellm.accepts:
                    raise DependencyUnavailable("litellm")
                size = operation.size(asked, model)
        except (InvalidRequest, InvalidModel, RequestTooLarge) as fault:
            if dialect_of(request).in_order:
                await shared.budgets.check(principal)
                if isinstance(fault, InvalidRequest) and fault.model is not None:
                    permitted(fault.model, row, shared.catalogue)
            raise
        with shared.open_requests:  # checked again, since the body may have taken 30 s
            request_id = request.get(REQUEST_ID) or uuid.uuid4().hex
            most = size.prompt_bound, size.estimate, size.limit, size.n
            reservation = await shared.budgets.admit(Ask(new_id(), request_id, principal, model, purpose, *most))
            relay = Relay(request, shared, operation, asked, reservation, size.wanted, started)
            del body, asked  # a stream is long, and its request may be large
            return await relay.run()
    except asyncio.CancelledError:
        if relay is None:  # otherwise the relay has counted it
            shared.metrics.left(waiting=arrived)
            request[LOGGED] = {"model": request.get(MODEL), "outcome": Outcome.ABORT}
        raise


def _purpose(request: web.Request, row: ServiceType) -> str:
    """:raises InvalidRequest: the row demands one of its own purposes."""
    given = request.headers.get("purpose")
    if row.purposes_required and given not in row.purposes:
        raise InvalidRequest(f"purpose must be one of: {', '.join(row.purposes)}.", param="purpose")
    return row.purpose(given)


def count_refusal(request: web.Request, error: ServiceError) -> None:
    """Count and note a request of a paid operation that is answered with an error, whatever refused it."""
    resource = request.match_info.route.resource
    if resource is not None and resource.canonical in (shared := request.app[COLLABORATORS]).operations:
        model, service_type = request.get(MODEL), request.get(SERVICE_TYPE, "none")
        shared.metrics.rejected(error, model or "other", service_type)
        shared.refusals.add(
            error,
            request_id=request.get(REQUEST_ID, ""),
            user_id=request.get(USER_ID),
            service_type=service_type,
            model=error.model if isinstance(error, InvalidModel) else model,
        )
        if LOGGED not in request:  # otherwise the relay has said how it ended
            request[LOGGED] = {"model": model, "outcome": "refused"}
