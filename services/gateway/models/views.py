"""GET /v1/models: the models that a token may use."""

from __future__ import annotations

from typing import Literal

import msgspec
from aiohttp import web

from services.gateway import keys
from services.gateway.openapi import ErrorBody
from services.gateway.tokens.views import authenticate
from shared.errors import DependencyUnavailable
from shared.openapi import Answer, Operation


class Model(msgspec.Struct, frozen=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(msgspec.Struct, frozen=True):
    object: Literal["list"]
    data: list[Model]


async def models(request: web.Request) -> web.Response:
    principal = await authenticate(request)
    await request.app[keys.BUDGETS].check(principal)
    catalogue = request.app[keys.CATALOGUE]
    if not catalogue.loaded:
        raise DependencyUnavailable("litellm")
    names = sorted(name for name in catalogue.names() if principal.service_type.allows_model(name))
    data = [Model(name, "model", 0, name.partition("/")[0] if "/" in name else "litellm") for name in names]
    return web.Response(
        body=msgspec.json.encode(ModelList("list", data)),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


OPERATIONS = [
    Operation(
        "GET",
        "/v1/models",
        models,
        "The models that this token may use",
        {
            200: Answer("OpenAI's list of models", ModelList),
            401: Answer("`invalid_token`", ErrorBody, headers=["WWW-Authenticate"]),
            403: Answer("`user_blocked`", ErrorBody),
            503: Answer("`unavailable`", ErrorBody, headers=["Retry-After"]),
        },
        tag="OpenAI",
        security="access_token",
    )
]
