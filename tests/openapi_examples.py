"""The examples of an OpenAPI document: what Swagger UI's "Try it out" sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

JSON, FORM = "application/json", "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Example:
    """A request made of an operation's examples. ``path`` has its parameters and the query."""

    method: str
    path: str
    data: bytes | None
    headers: Mapping[str, str]


def examples(document: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Example]]:
    """Each operation as ``(method, path)``, and its example.

    :raises KeyError: a body or a required parameter has no example, so that Swagger UI makes one up.
    """
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            given = operation.get("parameters", [])
            asked = {(one["in"], one["name"]): one["example"] for one in given if one["required"]}
            filled = path
            for (where, name), value in asked.items():
                if where == "path":
                    filled = filled.replace(f"{{{name}}}", quote(value, safe=""))
            query = urlencode({name: value for (where, name), value in asked.items() if where == "query"})
            data, headers = _body(operation)
            url = f"{filled}?{query}" if query else filled
            yield (method.upper(), path), Example(method.upper(), url, data, headers)


def _body(operation: dict[str, Any]) -> tuple[bytes | None, dict[str, str]]:
    content = operation.get("requestBody", {}).get("content", {})
    for media_type, body in content.items():
        encoded = urlencode(body["example"]).encode() if media_type == FORM else msgspec.json.encode(body["example"])
        return encoded, {"Content-Type": media_type}
    return None, {}
