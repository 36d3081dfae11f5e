"""The client of LiteLLM: one pool of connections, and one ``Call`` per paid request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from services.gateway.errors import UpstreamError, UpstreamTimeout
from services.gateway.upstream import health
from services.gateway.upstream.asking import READ_BUFFER, Answer, Target, ask
from services.gateway.upstream.balance import Balancer, Instance
from services.gateway.upstream.classify import MAX_ERROR_BODY
from services.gateway.upstream.connector import Connector, Wire
from shared.errors import DependencyUnavailable
from shared.service import fetch
from shared.service.fetch import NoAnswer
from shared.telemetry.metrics import Registry

#: Largest answer that is not a stream: 2,048 embeddings of 3,072 numbers each, in base64.
MAX_ANSWER = 40 * 1024 * 1024
#: Seconds for LiteLLM to list its models.
MODEL_INFO_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """The configuration of the client. ``base_urls`` are LiteLLM's instances; times are seconds."""

    base_urls: tuple[str, ...]
    virtual_key: str | None
    health_interval: float
    health_timeout: float
    connect_timeout: float = 5.0
    #: Idle connections are dropped before LiteLLM's server drops them, so that no request meets one being closed.
    #: The server is uvicorn, which keeps them 5 s (BerriAI/litellm litellm/proxy/proxy_cli.py sets timeout_keep_alive
    #: only on --keepalive_timeout; encode/uvicorn uvicorn/config.py).
    keepalive: float = 4.0


class KeyRefused(DependencyUnavailable):
    """LiteLLM refuses the virtual key: an operator has to set a new one."""

    def __init__(self) -> None:
        super().__init__("litellm")


class LiteLLM:
    """A client of all instances of LiteLLM."""

    def __init__(
        self, config: UpstreamConfig, pool: Connector, fresh: Connector, session: aiohttp.ClientSession
    ) -> None:
        """
        :param pool: the connections of paid requests.
        :param fresh: makes a new connection for each request.
        :param session: for all else, over the same connections.
        """
        self.balancer = Balancer([URL(url.rstrip("/")) for url in config.base_urls])
        self._pool, self._fresh, self._session = pool, fresh, session
        self._timeout = session.timeout
        self._targets: dict[tuple[Instance, str], Target] = {}
        self._headers = CIMultiDict(
            {
                "Content-Type": "application/json",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                "User-Agent": "mlpa-gateway",
            }
        )
        if config.virtual_key:
            self._headers["Authorization"] = f"Bearer {config.virtual_key}"
        self._health_timeout = config.health_timeout

    @classmethod
    @asynccontextmanager
    async def open(cls, config: UpstreamConfig, registry: Registry) -> AsyncIterator[LiteLLM]:
        """Opens the pool and begins the health checks; both end with the block."""
        pool, fresh = Connector(keepalive=config.keepalive), Connector(keepalive=None)
        async with fresh, _session(config, pool) as session:
            litellm = cls(config, pool, fresh, session)
            async with health.checking(litellm.balancer.instances, litellm.check, config.health_interval, registry):
                yield litellm

    @property
    def healthy(self) -> bool:
        """False after two failed health checks of each instance, until one passes or a request is answered."""
        return self.balancer.healthy

    @property
    def accepts(self) -> bool:
        """Whether a request would be sent. While no instance is healthy, a few at a time still are."""
        return self.balancer.accepts

    def call(self) -> Call:
        """A new request: ``async with litellm.call() as call``."""
        return Call(self)

    async def send(self, instance: Instance, path: str, fields: Mapping[str, str], wire: Wire) -> Answer:
        """Send the wire's request to an instance.

        If a kept connection closes before all of the request was written, it is sent again over a new one, since
        LiteLLM acts only on whole requests.

        :raises aiohttp.ClientError: as ``ask``.
        """
        target = self._targets.get((instance, path))
        if target is None:
            url = instance.url.joinpath(*path.split("/"))
            target = self._targets[instance, path] = Target(url, self._headers)
        try:
            return await ask(self._pool, self._timeout, target, fields, wire)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
            raise
        except aiohttp.ClientConnectionError:
            if wire.written or not wire.reused:
                raise
        return await ask(self._fresh, self._timeout, target, {**fields, "Connection": "close"}, wire)

    async def check(self, instance: Instance) -> bool:
        """Whether an instance answers its liveness check."""
        url = instance.url / "health" / "liveliness"
        try:
            await fetch.get(self._session, url, limit=MAX_ERROR_BODY, timeout=self._health_timeout)
        except NoAnswer:
            return False
        return True

    async def model_info(self) -> bytes:
        """The body of ``/model/info``, not decoded, so that prices don't become floats.

        :raises KeyRefused: LiteLLM refuses the virtual key.
        :raises DependencyUnavailable: it can't be read.
        """
        instance = self.balancer.pick() or self.balancer.instances[0]
        try:
            answer = await fetch.ask(
                self._session,
                "GET",
                instance.url / "model" / "info",
                limit=MAX_ANSWER,
                timeout=MODEL_INFO_TIMEOUT,
                headers=self._headers,
            )
        except NoAnswer as error:
            raise DependencyUnavailable("litellm") from error
        if answer.status in (401, 403):
            raise KeyRefused
        if answer.status != HTTPStatus.OK:
            raise DependencyUnavailable("litellm")
        return answer.body


def _session(config: UpstreamConfig, pool: Connector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=pool,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_timeout),
        auto_decompress=False,
        read_bufsize=READ_BUFFER,
        trust_env=False,
    )


class Call:
    """A request to LiteLLM.

    Leaving the block ends it, and closes the connection unless the answer was read to the end.
    """

    __slots__ = ("_closed", "_instance", "_litellm", "_response", "_tried", "_wire")

    def __init__(self, litellm: LiteLLM) -> None:
        self._litellm = litellm
        self._instance: Instance | None = None
        self._tried = False
        self._response: Answer | None = None
        self._closed: asyncio.Future[None] | None = None
        self._wire = Wire()

    @property
    def sent(self) -> bool:
        """Whether any byte of the request may have gone out."""
        return self._wire.used

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        response = self._response
        if self._closed is not None:
            # the connection may be lost later, and asyncio wants the reason retrieved
            self._closed.remove_done_callback(self._connection_closed)
            self._closed.remove_done_callback(_retrieve)
            self._closed.add_done_callback(_retrieve)
        if response is None or not response.closed:
            self._wire.cut()
            if response is not None:
                response.close()
        self._leave()

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send the request; returns when the answer's headers have arrived.

        If an instance can't be reached, the next one is asked.

        :param headers: those that this request has beside the common ones.
        :raises DependencyUnavailable: all instances are out, and enough requests are being tried.
        :raises UpstreamError: no connection lasted until the headers.
        :raises UpstreamTimeout: no instance accepted the connection in time.
        """
        self._wire.body = body
        del body  # the wire releases it
        tried: set[Instance] = set()
        failure: Exception | None = None
        while (instance := self._litellm.balancer.pick(tried)) is not None:
            self._enter(instance)
            try:
                response = await self._litellm.send(instance, path, headers, self._wire)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                failure = error
                instance.connect_failed()
                tried.add(instance)
                self._leave()
                continue
            except aiohttp.ClientError as error:
                raise UpstreamError from error
            if response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                instance.answered()
            self._end_try()
            self._response = response
            self._watch_connection(response)
            return response
        if failure is None:
            raise DependencyUnavailable("litellm")
        if isinstance(failure, aiohttp.ConnectionTimeoutError):
            raise UpstreamTimeout from failure
        raise UpstreamError from failure

    def _watch_connection(self, response: Answer) -> None:
        """End the reading of an answer whose connection aiohttp closes for broken framing.

        aiohttp records such a fault only for the reader of headers; the reader of the body would wait for ever.
        """
        connection = response.connection
        if connection.protocol is not None:
            self._closed = connection.protocol.closed
        if self._closed is not None:
            self._closed.add_done_callback(self._connection_closed)

    def _connection_closed(self, closed: asyncio.Future[None]) -> None:
        _retrieve(closed)
        content = self._response.content if self._response is not None else None
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("The connection was closed"))

    async def read_error(self) -> bytes:
        """The body of an error, up to a limit."""
        assert self._response is not None
        parts, size = [], 0
        try:
            while size < MAX_ERROR_BODY and (part := await self._response.content.readany()):
                parts.append(part)
                size += len(part)
        except aiohttp.ClientError:
            pass  # the status is enough
        return b"".join(parts)

    async def read_answer(self, on_data: Callable[[int], None]) -> bytes:
        """The whole body.

        :param on_data: called with the size of each part.
        :raises UpstreamError: it was cut short, or is too large.
        """
        assert self._response is not None
        parts, size = [], 0
        try:
            while part := await self._response.content.readany():
                on_data(len(part))
                parts.append(part)
                size += len(part)
                if size > MAX_ANSWER:
                    raise UpstreamError("The model's answer is too large.")
        except aiohttp.ClientError as error:
            raise UpstreamError from error.with_traceback(None)  # content holds it: a cycle with this frame
        return b"".join(parts)

    async def read_to_end(self, seconds: float) -> None:
        """Wait a moment for the end of a complete answer, so that its connection can be kept."""
        assert self._response is not None
        try:
            async with asyncio.timeout(seconds):
                while await self._response.content.readany():
                    pass
        except (aiohttp.ClientError, TimeoutError):
            pass  # the connection is closed instead

    def _enter(self, instance: Instance) -> None:
        self._instance = instance
        instance.open += 1
        if not instance.healthy:
            self._tried = True
            instance.tried += 1

    def _end_try(self) -> None:
        if self._tried and self._instance is not None:
            self._tried = False
            self._instance.tried -= 1

    def _leave(self) -> None:
        self._end_try()
        if self._instance is not None:
            self._instance.open -= 1
            self._instance = None


def _retrieve(closed: asyncio.Future[None]) -> None:
    if not closed.cancelled():
        closed.exception()
