"""A gateway of chat alone: real sockets, a LiteLLM double behind it, budgets that record their calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.gateway import dialects
from services.gateway.budget.charging import NOTHING, Charge
from services.gateway.budget.models import Ask, Delivery, RateLimits, Reservation, Usage
from services.gateway.chat.operation import CHAT
from services.gateway.dialects import DIALECTS, OPENAI, Dialect
from services.gateway.errors import InvalidToken
from services.gateway.relay.answers import Answers
from services.gateway.relay.bodies import PATIENCE, Bodies
from services.gateway.relay.collaborators import COLLABORATORS, Collaborators
from services.gateway.relay.connection import RelaySite
from services.gateway.relay.metrics import RelayMetrics
from services.gateway.relay.open_requests import OpenRequests
from services.gateway.relay.views import Paid, count_refusal
from services.gateway.settings import GatewaySettings
from services.gateway.tokens.models import Principal
from services.gateway.upstream.client import LiteLLM, UpstreamConfig
from shared.errors import ServiceError
from shared.service.serve import listen
from shared.service.web import SERVICE_TYPE, USER_ID, Frame
from shared.telemetry.logs import UserDigest
from shared.telemetry.metrics import Registry
from shared.telemetry.openapi import add_routes
from shared.telemetry.tracing import Tracing
from tests.doubles.litellm import LiteLLMDouble
from tests.support.configs import SETTINGS, upstream_at
from tests.support.exposition import metric
from tests.support.service_types import service_type

TOKEN = "good-token"


@dataclass(frozen=True)
class Model:
    """What the relay asks of a priced model."""

    name: str
    prompt_bytes_per_token: int = 1
    max_tokens_per_image: int = 1000
    context_window: int | None = None
    max_output_tokens: int | None = None
    limit_name: str = "max_completion_tokens"
    embedding: bool = False
    decodes_tokens: bool = False
    vector_size: int | None = None


@dataclass
class NotingBudgets:
    """Admits everything up to ``grant``; notes each settlement."""

    grant: int = 100_000
    refuse: Exception | None = None
    charge: int = 7
    asks: list[Ask] = field(default_factory=list)
    open: dict[str, Reservation] = field(default_factory=dict)
    settled: list[tuple[Reservation, Delivery]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    #: Somebody has asked to be admitted, and may be answered.
    came: asyncio.Event = field(default_factory=asyncio.Event)
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.answering.set()

    async def admit(self, ask: Ask) -> Reservation:
        self.came.set()
        await self.answering.wait()
        if self.refuse is not None:
            raise self.refuse
        self.asks.append(ask)
        limits = RateLimits(40, 1, 60_000, 2000, 10, 1000)
        reservation = Reservation(ask, min(ask.limit, self.grant), 1, 86400, 1_760_000_000_000, limits, "0")
        self.open[reservation.id] = reservation
        return reservation

    async def check(self, _principal: Principal) -> None:
        if self.refuse is not None:
            raise self.refuse

    def settle(self, reservation: Reservation, delivery: Delivery) -> Charge:
        del self.open[reservation.id]  # a second settlement fails here
        self.settled.append((reservation, delivery))
        self.changed.set()
        if not delivery.sent or delivery.refused:
            return NOTHING
        usage = delivery.usage or Usage(3, delivery.relayed_bytes)
        return Charge(self.charge, usage.prompt_tokens, usage.completion_tokens, 0)

    async def wait_settled(self, number: int = 1) -> Delivery:
        async with asyncio.timeout(10):
            while len(self.settled) < number:
                self.changed.clear()
                await self.changed.wait()
        return self.settled[number - 1][1]


@dataclass
class NotingRefusals:
    """Notes each refusal."""

    noted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def add(self, error: ServiceError, **more: Any) -> None:
        self.noted.append((error.code, more))


class Models(dict[str, Model]):
    """The catalogue: any name that doesn't begin with ``unknown``. Those that begin with ``embed`` make embeddings."""

    loaded = True

    def get(self, name: str, default: Any = None) -> Any:
        given = Model(name, embedding=name.startswith("embed"))
        return super().get(name, default) or (None if name.startswith("unknown") else given)


class Gateway:
    """A running gateway, and a client of it."""

    def __init__(
        self,
        double: LiteLLMDouble,
        upstream: UpstreamConfig,
        settings: GatewaySettings = SETTINGS,
        *,
        max_open_requests: int = 2500,
        dialects: Sequence[Dialect] = (),
        paid: Sequence[Paid] = (),
        tracing: Tracing | None = None,
        row: Mapping[str, Any] | None = None,
        body_patience: float = PATIENCE,
    ) -> None:
        """
        :param dialects: those beside OpenAI's.
        :param paid: operations beside chat.
        :param row: fields of the service type.
        """
        self.double = double
        self.settings = settings
        self.upstream = upstream
        self.budgets = NotingBudgets()
        self.refusals = NotingRefusals()
        self.models = Models()
        self.registry = Registry()
        self.open_requests = OpenRequests(max_open_requests)
        self.answers = Answers()
        self._dialects, self._paid = dialects, paid
        self._row = row or {}
        self._tracing, self._body_patience = tracing, body_patience
        self.litellm: LiteLLM
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> list[web.RequestHandler]:
        """Those of its clients."""
        assert self._runner.server is not None
        return self._runner.server.connections

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Gateway]:
        row = service_type(models=("*",), purposes=("chat",), **self._row)

        async def authenticate(request: web.Request) -> Principal:
            if request.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise InvalidToken(missing=True)
            request[SERVICE_TYPE], request[USER_ID] = row.name, "uid:ai"
            return Principal("uid:ai", "uid", row, "jti", 2e9)

        app = web.Application()
        app[DIALECTS] = (*self._dialects, replace(OPENAI, authenticate=authenticate))
        add_routes(app, [one.route for one in (CHAT, *self._paid)])
        if self._tracing is not None:
            self._tracing.install(app)
        frame = self.frame = Frame(
            self.registry,
            lambda request, error: dialects.of(request).error_response(error),
            endpoints=["/v1/chat/completions"],
            user_digest=UserDigest(None),
            on_refusal=count_refusal,
        )
        frame.install(app)
        async with LiteLLM.open(self.upstream, self.registry) as self.litellm, aiohttp.ClientSession() as self.session:
            limit = self.settings.max_request_size_bytes
            made = {one.route.path: one.make(self.settings, self.registry) for one in (CHAT, *self._paid)}
            app[COLLABORATORS] = Collaborators(
                made,
                self.settings,
                self.models,
                self.budgets,
                self.litellm,
                RelayMetrics(self.registry),
                self.open_requests,
                Bodies(limit, patience=self._body_patience),
                self.refusals,
                self.answers,
            )
            runner = self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.5)
            await runner.setup()
            sock = listen("127.0.0.1", 0)
            self.port = sock.getsockname()[1]
            await RelaySite(runner, sock, frame, max_body=limit).start()
            yield self
            await runner.cleanup()
        assert not self.budgets.open, "a reservation was left"

    def post(self, body: Any = None, **options: Any) -> Any:
        """A chat request as a client session makes it; ``body`` updates the plainest one."""
        headers = {"Authorization": f"Bearer {TOKEN}", **options.pop("headers", {})}
        data = body if isinstance(body, bytes) else json.dumps(request_body(**(body or {}))).encode()
        headers.setdefault("Content-Type", "application/json")
        return self.session.post(f"{self.url}/v1/chat/completions", data=data, headers=headers, **options)

    async def read(self, body: Any = None, **options: Any) -> tuple[int, bytes, Any]:
        async with self.post(body, **options) as response:
            return response.status, await response.read(), response.headers

    async def connect(self, body: Any = None, *, receive_buffer: int | None = None) -> RawClient:
        """A request over a bare socket."""
        client = await RawClient.open(self.port, receive_buffer)
        client.ask(request_body(**(body or {})))
        return client

    async def until_logged(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Wait until a request has its log line."""
        async with asyncio.timeout(5):
            while all(line["event"] != "request" for line in lines):  # noqa: ASYNC110 - the client may be ahead
                await asyncio.sleep(0.01)

    def metric(self, name: str, **labels: str) -> float:
        return metric(self.registry, name, **labels)


class RawClient:
    """A client that can do more than client libraries: half-close, reset, stop reading, pipeline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, receive_buffer: int | None) -> RawClient:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=sock, limit=receive_buffer or 2**20))

    def ask(self, body: dict[str, Any], *, declare: int | None = None, version: str = "1.1") -> None:
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/{version}\r\nHost: gateway\r\nContent-Type: application/json\r\n"
            "Connection: keep-alive\r\n"
            f"Authorization: Bearer {TOKEN}\r\nContent-Length: {declare or len(data)}\r\n\r\n"
        )
        self.writer.write(head.encode() + data)

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readuntil(mark)

    async def cut_off(self) -> None:
        """Wait until the gateway has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def request_body(**changes: Any) -> dict[str, Any]:
    body = {"model": "double", "messages": [{"role": "user", "content": "Hi"}], **changes}
    return {name: value for name, value in body.items() if value is not ...}


@pytest.fixture
async def double() -> AsyncIterator[LiteLLMDouble]:
    async with LiteLLMDouble() as double:
        yield double


@pytest.fixture
def settings() -> GatewaySettings:
    return SETTINGS


@pytest.fixture
async def gateway(double: LiteLLMDouble, settings: GatewaySettings) -> AsyncIterator[Gateway]:
    upstream = upstream_at(double.url, virtual_key="sk-virtual")
    async with Gateway(double, upstream, settings).running() as gateway:
        yield gateway
