"""Operations of a service, declared once: the routes of the app and the OpenAPI 3.1 document both come from them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

#: With the SPDX identifier, which generators of clients insist on in a document of OpenAPI 3.1.
_LICENSE = {"name": "Mozilla Public License 2.0", "identifier": "MPL-2.0"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    description: str
    where: str = "query"
    required: bool = False
    schema: Schema = field(default_factory=lambda: {"type": "string"})
    #: What Swagger UI fills in; the service takes it. Required parameters have one.
    example: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One status that an operation answers with; ``body`` is a msgspec type, a JSON Schema, or None for no body."""

    description: str
    body: Any = None
    media_type: str = "application/json"
    headers: Sequence[str] = ()
    #: Schemas of the other media types that the body may have.
    also: Mapping[str, Schema] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request. ``example`` is what Swagger UI fills in; the service takes it as it is."""

    schema: Any
    example: Mapping[str, Any]
    media_type: str = "application/json"
    required: bool = True


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. ``route`` is aiohttp's pattern of the path, where a parameter may hold slashes."""

    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, Answer]
    description: str = ""
    tag: str = ""
    parameters: Sequence[Parameter] = ()
    body: Body | None = None
    security: str | None = None
    listed: bool = True
    route: str = ""


def add_routes(app: web.Application, operations: Sequence[Operation]) -> None:
    for operation in operations:
        path = operation.route or operation.path
        app.router.add_route(operation.method, path, operation.handler)
        if operation.method == "GET":
            app.router.add_route("HEAD", path, operation.handler)


def document(
    title: str,
    version: str,
    description: str,
    operations: Sequence[Operation],
    *,
    security_schemes: Mapping[str, Any],
    common: Mapping[int, Answer],
) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    :param common: answers that every operation may give (404 of the frame, 413, 500...).
    """
    types = _struct_types(operations, common)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(types, schemas, strict=True))

    def schema(of: Any) -> Any:
        return by_type[of] if isinstance(of, type) else of

    def answer(given: Answer) -> dict[str, Any]:
        entry: dict[str, Any] = {"description": given.description}
        if given.headers:
            entry["headers"] = {name: {"schema": {"type": "string"}} for name in given.headers}
        if given.body is not None:
            bodies = {given.media_type: schema(given.body), **given.also}
            entry["content"] = {media_type: {"schema": body} for media_type, body in bodies.items()}
        return entry

    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        if not operation.listed:
            continue
        answers = {**common, **operation.answers}
        entry: dict[str, Any] = {
            "summary": operation.summary,
            "operationId": f"{operation.method.lower()}_{_slug(operation.path)}",
            "responses": {str(status): answer(given) for status, given in sorted(answers.items())},
        }
        if operation.description:
            entry["description"] = operation.description
        if operation.tag:
            entry["tags"] = [operation.tag]
        if operation.parameters:
            entry["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
        if operation.body is not None:
            content = {"schema": schema(operation.body.schema), "example": dict(operation.body.example)}
            entry["requestBody"] = {
                "required": operation.body.required,
                "content": {operation.body.media_type: content},
            }
        if operation.security:
            entry["security"] = [{operation.security: []}]
        paths.setdefault(operation.path, {})[operation.method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description, "license": _LICENSE},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": dict(security_schemes)},
    }


def _parameter(given: Parameter) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": given.name,
        "in": given.where,
        "required": given.required or given.where == "path",
        "description": given.description,
        "schema": dict(given.schema),
    }
    if given.example is not None:
        entry["example"] = given.example
    return entry


def _struct_types(operations: Sequence[Operation], common: Mapping[int, Answer]) -> list[type]:
    answers = [given for operation in operations for given in operation.answers.values()] + list(common.values())
    found = [given.body for given in answers] + [op.body.schema for op in operations if op.body]
    return list(dict.fromkeys(of for of in found if isinstance(of, type)))


def _slug(path: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in path).strip("_")
