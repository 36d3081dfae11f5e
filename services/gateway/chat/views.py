"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
import uuid

from aiohttp import web

from services.gateway.budget.models import Ask
from services.gateway.catalogue.prices import PricedModel
from services.gateway.chat.keys import CHAT, Chat
from services.gateway.chat.relay import Exchange
from services.gateway.chat.request import ChatRequest
from services.gateway.errors import InvalidModel, RequestTooLarge
from services.gateway.tokens.models import Principal
from shared.errors import DependencyUnavailable, ServiceError
from shared.service.web import REQUEST_ID
from shared.telemetry.tracing import traceparent


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Authenticate, validate, admit, relay. Errors are raised as ServiceError until a stream has begun."""
    chat = request.app[CHAT]
    seen = _Seen()
    try:
        chat.open_requests.check()
        principal = await chat.authenticate(request)
        seen.service_type = principal.service_type.name
        chat.bodies.door.check(principal.user_id)
        body = await chat.bodies.read(request, principal.user_id)
        with chat.bodies.door.passing(principal.user_id):
            asked = await chat.bodies.parse(body, principal.user_id)
            model = _model(chat, seen, principal, asked)
        with chat.open_requests.place():
            exchange = await _admit(request, chat, seen, principal, asked, model)
            del body, asked  # a stream is long, and its request may be large
            return await exchange.run()
    except ServiceError as error:
        chat.metrics.rejected(error, seen.model, seen.service_type)
        raise


class _Seen:
    """The labels of a request so far, for the metrics of a refusal."""

    __slots__ = ("model", "service_type", "started")

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.model = "other"
        self.service_type = "none"


def _model(chat: Chat, seen: _Seen, principal: Principal, asked: ChatRequest) -> PricedModel:
    """The model asked for, if this user may use it for this request."""
    model = chat.models.get(asked.model)
    if not chat.models.loaded:
        raise DependencyUnavailable("litellm")
    if model is None or not principal.service_type.allows_model(asked.model):
        raise InvalidModel
    seen.model = model.name
    if not chat.litellm.accepts:
        raise DependencyUnavailable("litellm")
    _check_window(asked, model.context_window)
    return model


async def _admit(
    request: web.Request, chat: Chat, seen: _Seen, principal: Principal, asked: ChatRequest, model: PricedModel
) -> Exchange:
    """Admit a request. Nothing is reserved if this raises."""
    row = principal.service_type
    limit = asked.limit or chat.config.max_completion_tokens
    request_id = request.get(REQUEST_ID) or uuid.uuid4().hex
    purpose = row.purpose(request.headers.get("purpose"))
    reservation = await chat.budgets.admit(
        Ask(
            id=uuid.uuid4().hex,
            request_id=request_id,
            principal=principal,
            model=model,
            purpose=purpose,
            prompt_bound=asked.prompt.bound(model),
            estimated_prompt_tokens=asked.prompt.estimate,
            limit=min(limit, model.max_output_tokens or limit),
            n=asked.n,
        )
    )
    headers = {"X-Request-ID": request_id}
    trace = traceparent(request)
    if trace:
        headers["traceparent"] = trace
    return Exchange(request, chat, asked, reservation, headers, (model.name, row.name, purpose), seen.started)


def _check_window(asked: ChatRequest, window: int | None) -> None:
    """Refuse a prompt that is larger than the window by its estimate.

    By its bound, prompts would get a fourth of most windows.
    """
    if window is not None and asked.prompt.estimate > window:
        raise RequestTooLarge("The prompt is larger than the model's context window.", param="messages")
