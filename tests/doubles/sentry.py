"""A Sentry: takes envelopes, and keeps them as they came.

What it imitates, with the source. Files are in getsentry/relay, below relay-server/src.

    POST /api/{project}/envelope/; 200 {"id": the event's} endpoints/envelope.rs
    X-Sentry-Auth with the key: 401 without it, 400 for    extractors/request_meta.rs (auth_from_parts, RequestMeta);
    one that is not of 32 characters                       ProjectKey in relay-base-schema
    the envelope: JSON lines of headers, items of the      envelope/mod.rs; develop.sentry.dev/sdk/envelopes
    length that theirs say; 400 for anything else

Where it differs on purpose: any key will do, nothing is limited, every item has to say its length.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


class Sentry:
    def __init__(self) -> None:
        self.envelopes: list[bytes] = []
        self.headers: list[str] = []
        self.dsn = ""
        self._events: list[Any] = []

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Sentry]:
        sentry = cls()
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/api/1/envelope/", sentry._take)
        async with TestServer(app) as server:
            sentry.dsn = f"http://{'c0ffee42' * 4}@{server.host}:{server.port}/1"
            yield sentry

    def event(self) -> Any:
        """The only event that has come."""
        (event,) = self._events
        return event

    async def _take(self, request: web.Request) -> web.Response:
        key = re.match(r"Sentry (?:.*, ?)?sentry_key=([^,]*)", request.headers.get("X-Sentry-Auth", ""))
        if key is None:
            return web.json_response({"detail": "missing authorization information"}, status=401)
        envelope = await request.read()  # aiohttp undoes the compression
        try:
            if len(key[1]) != 32:
                raise ValueError("bad sentry DSN public key")
            head, items = _parse(envelope)
        except (ValueError, KeyError) as error:
            return web.json_response({"detail": str(error)}, status=400)
        self.envelopes.append(envelope)
        self.headers.append(str(request.headers))
        self._events += [json.loads(payload) for kind, payload in items if kind == "event"]
        return web.json_response({"id": head["event_id"]} if "event_id" in head else {})


def _parse(envelope: bytes) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
    """:raises ValueError, KeyError: it is none."""
    line, _, rest = envelope.partition(b"\n")
    head, items = json.loads(line), []
    while rest:
        line, _, rest = rest.partition(b"\n")
        item = json.loads(line)
        payload, end, rest = rest[: item["length"]], rest[item["length"] :][:1], rest[item["length"] + 1 :]
        if len(payload) != item["length"] or end not in (b"", b"\n"):
            raise ValueError("an item is not of the length that it says")
        items.append((item["type"], payload))
    return head, items
