"""POST /v1/chat/completions: chat as a paid operation, and its documentation."""

from __future__ import annotations

from typing import Any

from services.gateway.budget.models import Reservation
from services.gateway.catalogue.prices import PricedModel
from services.gateway.catalogue.services import Catalogue
from services.gateway.chat.metrics import ChatMetrics
from services.gateway.chat.request import PARAMETERS, ChatRequest, parse
from services.gateway.chat.tally import Tally
from services.gateway.errors import RequestTooLarge
from services.gateway.relay.operation import Size, permitted
from services.gateway.relay.raw_json import MAX_ITEMS
from services.gateway.relay.views import paid
from services.gateway.settings import GatewaySettings
from shared.domain.service_types import MAX_MODEL_NAME, ServiceType
from shared.telemetry.metrics import Registry
from shared.telemetry.openapi import Answer, Body

_PATH = "v1/chat/completions"


class Chat:
    """Chat completions, streamed or whole."""

    most_items = MAX_ITEMS

    def __init__(self, settings: GatewaySettings, registry: Registry) -> None:
        self._settings = settings
        self._image_hosts = frozenset(settings.image_url_hosts)
        self.metrics = ChatMetrics(registry)
        self.deadline = settings.total_timeout_seconds

    def parse(self, body: bytes, row: ServiceType) -> ChatRequest:
        return parse(body, self._image_hosts)

    def model(self, asked: ChatRequest, row: ServiceType, catalogue: Catalogue) -> PricedModel:
        return permitted(asked.model, row, catalogue)

    def size(self, asked: ChatRequest, model: PricedModel) -> Size:
        """The estimate decides what fits the window: by its bound, prompts would get a fourth of most windows."""
        window, prompt = model.context_window, asked.prompt
        if window is not None and prompt.estimate > window:
            raise RequestTooLarge("The prompt is larger than the model's context window.", param="messages")
        limit = asked.limit or self._settings.max_completion_tokens
        limit = min(limit, model.max_output_tokens or limit)
        return Size(prompt.bound(model), prompt.estimate, limit, asked.n, asked.limit or 0)

    def path(self, asked: ChatRequest) -> str:
        return _PATH

    def encode(self, asked: ChatRequest, reservation: Reservation) -> bytes:
        ask = reservation.ask
        principal = ask.principal
        defaults = sampling(self._settings, principal.service_type)
        return asked.encode(principal.user_id, reservation.grant, ask.model.limit_name, defaults)

    def tally(self, asked: ChatRequest) -> Tally:
        return Tally(show_usage=asked.wants_usage, choices=asked.n)


def sampling(settings: GatewaySettings, row: ServiceType) -> dict[str, float]:
    """The sampling parameters of a request of this service type that has none."""
    given = {
        "temperature": settings.temperature if row.temperature is None else row.temperature,
        "top_p": settings.top_p if row.top_p is None else row.top_p,
    }
    return {name: value for name, value in given.items() if value is not None}


_PARAMETERS = PARAMETERS.schemas()
_PARAMETERS["max_tokens"]["deprecated"] = True
_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["model", "messages"],
    "description": "Other parameters are dropped silently.",
    "properties": {
        "model": {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_NAME},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                    "content": {
                        "description": "Text, or parts: `text`, or `image_url` as a `data:` URL.",
                        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}],
                    },
                },
            },
        },
        "tools": {"type": "array", "items": {"type": "object"}},
        "response_format": {"type": "object"},
        **_PARAMETERS,
    },
}

_EXAMPLE = {
    "model": "openai/gpt-4o",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_completion_tokens": 100,
}
_EVENTS = {"type": "string", "description": "Each event is `data: ` and a chunk as JSON; the last is `data: [DONE]`."}

CHAT = paid(
    Chat,
    f"/{_PATH}",
    "Chat completions, streaming and not",
    Answer(
        "OpenAI's completion object; with `stream: true` server-sent events of completion chunks. A limit that "
        "the budget lowered shows as `x-mlpa-max-completion-tokens`.",
        {"type": "object"},
        headers=["x-mlpa-max-completion-tokens"],
        also={"text/event-stream": _EVENTS},
    ),
    Body(_REQUEST, _EXAMPLE),
)
