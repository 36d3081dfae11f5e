"""GET /catalogue: every model as operators need to see it, on the ops port alone."""

from __future__ import annotations

from decimal import Decimal

import msgspec
from aiohttp import web

from services.gateway import keys
from services.gateway.catalogue.prices import PricedModel
from services.gateway.error_body import ErrorBody
from shared.errors import DependencyUnavailable
from shared.telemetry.openapi import Answer, Operation


class CatalogueModel(msgspec.Struct, frozen=True):
    """A model. Prices are the dearest that can apply, as text; ``refused`` says why nobody may ask it."""

    name: str
    service_types: list[str]
    refused: str | None = None
    input_usd_per_token: str | None = None
    output_usd_per_token: str | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    min_completion_tokens: int | None = None
    reasoning: bool | None = None
    embedding: bool | None = None


class CatalogueBody(msgspec.Struct, frozen=True):
    models: list[CatalogueModel]


async def catalogue(request: web.Request) -> web.Response:
    """:raises DependencyUnavailable: LiteLLM's models were not read yet."""
    known, rows = request.app[keys.CATALOGUE], request.app[keys.SERVICE_TYPES].by_name.values()
    if not known.loaded:
        raise DependencyUnavailable("litellm")

    def allowed(name: str) -> list[str]:
        return [row.name for row in rows if row.allows_model(name)]

    models = [_priced(model, allowed(name)) for name in known.names() if (model := known.get(name))]
    models += [CatalogueModel(name, allowed(name), reason) for name, reason in known.refused().items()]
    body = CatalogueBody(sorted(models, key=lambda model: model.name))
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _priced(model: PricedModel, service_types: list[str]) -> CatalogueModel:
    return CatalogueModel(
        model.name,
        service_types,
        None,
        _text(model.input_price),
        _text(model.output_price),
        model.context_window,
        model.max_output_tokens,
        model.min_completion_tokens,
        model.reasoning,
        model.embedding,
    )


def _text(price: Decimal) -> str:
    """A price without exponent and closing zeros."""
    text = f"{price:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


OPERATIONS = [
    Operation(
        "GET",
        "/catalogue",
        catalogue,
        "Every model with its price, its service types, and why it is refused",
        {
            200: Answer("The models, by name", CatalogueBody),
            503: Answer("`unavailable`: LiteLLM's models were not read yet", ErrorBody, headers=["Retry-After"]),
        },
        tag="Operations",
        description="With `OPS_PORT` on that port alone; without it, only in `MLPA_DEBUG`.",
    )
]
