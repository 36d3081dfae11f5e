"""Faults that a stand-in is ordered to show, and counts of the requests that it got."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import msgspec
from aiohttp import web

_T = TypeVar("_T")
Handler = Callable[[web.Request], Awaitable[web.Response]]


class Fault(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How an endpoint misbehaves.

    ``answer``: as usual (after ``latency`` seconds); ``respond``: with ``status``, ``body`` (None: the stand-in's own
    for the status) and ``headers``; ``hang``: never answers; ``reset``: the connection is reset. ``times``: for so many
    requests; 0 = until changed.
    """

    endpoint: str
    kind: Literal["answer", "respond", "hang", "reset"] = "answer"
    latency: float = 0
    status: int = 503
    body: str | None = None
    headers: dict[str, str] = {}
    times: int = 0


class Faults:
    """The faults of a stand-in's endpoints. ``calls`` and ``most_at_once`` count requests, by endpoint."""

    def __init__(self, respond: Callable[[Fault], web.Response]) -> None:
        """:param respond: the stand-in's own answer of a fault's status and headers."""
        self.calls: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self._respond = respond
        self._now: Counter[str] = Counter()
        self._ordered: dict[str, Fault] = {}
        self._served: Counter[str] = Counter()  # since the endpoint's fault was set

    def set(self, fault: Fault) -> None:
        """Order a fault, in place of that of the same endpoint."""
        self._ordered[fault.endpoint] = fault
        self._served[fault.endpoint] = 0

    def clear(self) -> None:
        self._ordered.clear()

    def routes(self, endpoints: dict[str, web.RouteDef]) -> list[web.RouteDef]:
        """Routes of endpoints that can misbehave, and of the controls of their faults."""
        controls = [web.post("/local/faults", self._set), web.delete("/local/faults", self._clear)]
        return [*(self._misbehaving(name, route) for name, route in endpoints.items()), *controls]

    def _misbehaving(self, endpoint: str, route: web.RouteDef) -> web.RouteDef:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.calls[endpoint] += 1
            self._now[endpoint] += 1
            self.most_at_once[endpoint] = max(self.most_at_once[endpoint], self._now[endpoint])
            try:
                return await self._obey(endpoint, request) or await route.handler(request)
            finally:
                self._now[endpoint] -= 1

        return web.RouteDef(route.method, route.path, handle, {})

    async def _obey(self, endpoint: str, request: web.Request) -> web.Response | None:
        fault = self._ordered.get(endpoint)
        self._served[endpoint] += 1
        if fault is None or (fault.times and self._served[endpoint] > fault.times):
            return None
        await asyncio.sleep(fault.latency)
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "reset":
            _reset(request)
        if fault.kind != "respond":
            return None
        if fault.body is None:
            return self._respond(fault)
        return web.Response(status=fault.status, body=fault.body.encode(), headers=fault.headers)

    async def _set(self, request: web.Request) -> web.Response:
        self.set(await read(request, Fault))
        return web.json_response({})

    async def _clear(self, _request: web.Request) -> web.Response:
        self.clear()
        return web.json_response({})


async def answer_probe(_request: web.Request) -> web.Response:
    return web.json_response({})


async def read(request: web.Request, shape: type[_T]) -> _T:
    """The body of a control.

    :raises web.HTTPBadRequest: it has another shape.
    """
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=shape)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error


def _reset(request: web.Request) -> None:
    transport = request.transport
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
