"""Errors and streams as shipped Firefox clients read them.

They look for an integer ``error``: desktop and Android at the top of the body, the single-process MLPA wrote it below
``detail``. A 401 has no ``error``: desktop knows one by the text that OpenAI's SDK makes of a body without it, and then
gets a new FxA token. Streams have nothing but ``data: `` and empty lines: Android takes six characters off every line,
iOS drops events that begin otherwise.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from aiohttp import web

from services.gateway.errors import UserBlocked, error_headers, kind_of
from services.gateway.relay.sse import events, parse
from shared.errors import ServiceError

_BLOCKED = "User is blocked."


def error_response(error: ServiceError) -> web.Response:
    """The plain answer for an error."""
    reason = _reason(error)
    body: dict[str, object] = {"error": reason, "detail": {"error": reason}}
    if error.status == HTTPStatus.UNAUTHORIZED:
        body = {"detail": error.message}
    elif kind_of(error) is UserBlocked:
        body = {"detail": {"error": _BLOCKED}}
    return web.Response(
        status=error.status,
        body=msgspec.json.encode(body),
        headers=error_headers(error),
        content_type="application/json",
    )


def error_event(error: ServiceError) -> bytes:
    """The event that ends a stream which had begun."""
    return b"data: " + msgspec.json.encode({"error": _reason(error)}) + b"\n\n"


def data_lines(block: bytes) -> bytes:
    """Whole events with their data alone, in one line each."""
    if not block or _is_plain(block):
        return block
    lines = []
    for event in events(block):
        data = parse(event)[1]
        if data is not None and data.strip(b" "):
            lines.append(b"data: %b\n\n" % data.replace(b"\n", b" "))
    return b"".join(lines)


def _is_plain(block: bytes) -> bool:
    """Whether it is nothing but ``data: `` lines, each before an empty line, as LiteLLM writes nearly every block."""
    return (
        block.startswith(b"data: ")
        and block.endswith(b"\n\n")
        and b"\r" not in block
        and block.count(b"\n") == 2 * block.count(b"\n\ndata: ") + 2
        and b"data: \n" not in block
        and b"data:  " not in block
    )


def _reason(error: ServiceError) -> int | str:
    kind = kind_of(error)
    if kind is UserBlocked:
        return _BLOCKED
    return kind.mlpa_code if kind.mlpa_code is not None else error.message
