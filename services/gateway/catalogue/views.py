"""GET /v1/models and /v1/models/{id}: the models that a token may use."""

from __future__ import annotations

from typing import Literal

import msgspec
from aiohttp import web

from services.gateway import keys
from services.gateway.dialects import authenticate
from services.gateway.error_body import AUTHENTICATED, ErrorBody
from services.gateway.errors import ModelNotFound
from shared.errors import DependencyUnavailable
from shared.telemetry.openapi import Answer, Operation, Parameter


class Model(msgspec.Struct, frozen=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(msgspec.Struct, frozen=True):
    object: Literal["list"]
    data: list[Model]


async def models(request: web.Request) -> web.Response:
    names = await _names(request)
    return _answer(ModelList("list", [_model(name) for name in sorted(names)]))


async def model(request: web.Request) -> web.Response:
    """One model.

    :raises ModelNotFound: there is none of that name, or this user may not ask it.
    """
    name = request.match_info["id"]
    if name not in await _names(request):
        raise ModelNotFound
    return _answer(_model(name))


async def _names(request: web.Request) -> set[str]:
    """The models that the user may ask.

    :raises InvalidToken: the token is not good, or revoked.
    :raises UserBlocked: the user is blocked.
    :raises DependencyUnavailable: that could not be checked.
    """
    principal = await authenticate(request)
    await request.app[keys.BUDGETS].check(principal)
    catalogue = request.app[keys.CATALOGUE]
    if not catalogue.loaded:
        raise DependencyUnavailable("litellm")
    return {name for name in catalogue.names() if principal.service_type.allows_model(name)}


def _model(name: str) -> Model:
    return Model(name, "model", 0, name.partition("/")[0] if "/" in name else "litellm")


def _answer(body: Model | ModelList) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


OPERATIONS = [
    Operation(
        "GET",
        "/v1/models",
        models,
        "The models that this token may use",
        {200: Answer("OpenAI's list of models", ModelList), **AUTHENTICATED},
        tag="OpenAI",
        security="access_token",
    ),
    Operation(
        "GET",
        "/v1/models/{id}",
        model,
        "One of the models that this token may use",
        {200: Answer("OpenAI's model object", Model), **AUTHENTICATED, 404: Answer("`model_not_found`", ErrorBody)},
        tag="OpenAI",
        parameters=[
            Parameter(
                "id", "The model's name; slashes as they are, or as `%2F`.", where="path", example="openai/gpt-4o"
            )
        ],
        security="access_token",
        route="/v1/models/{id:.+}",
    ),
]
