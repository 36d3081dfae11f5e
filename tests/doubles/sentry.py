"""A Sentry: takes envelopes, and keeps them as they came."""

from __future__ import annotations

import json
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

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Sentry]:
        sentry = cls()
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/api/1/envelope/", sentry._take)
        async with TestServer(app) as server:
            sentry.dsn = f"http://public@{server.host}:{server.port}/1"
            yield sentry

    def event(self) -> Any:
        """The only event that has come."""
        (envelope,) = self.envelopes
        return next(json.loads(line) for line in envelope.splitlines() if b'"exception"' in line)

    async def _take(self, request: web.Request) -> web.Response:
        self.envelopes.append(await request.read())  # aiohttp undoes the compression
        self.headers.append(str(request.headers))
        return web.json_response({})
