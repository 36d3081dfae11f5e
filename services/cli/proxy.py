"""A server on loopback that gives tools with a static API key the access tokens of a device."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus

import aiohttp
from aiohttp import web
from jose import jwt

from services.cli.client import RequestFailed

HOST = "127.0.0.1"
#: Seconds before its end at which a token is replaced.
_EARLY = 30.0
_MAX_BODY = 64 * 1024 * 1024
#: Fields that belong to one connection (RFC 9110, section 7.6.1), and those that this server or aiohttp sets itself.
_OWN = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"),
    *("upgrade", "host", "authorization", "content-length", "date", "server"),
}


class Proxy:
    """The gateway under another address, for whoever knows the key.

    :param exchange: gets a new access token; raises RequestFailed or aiohttp.ClientError.
    """

    def __init__(self, gateway_url: str, key: str, exchange: Callable[[], Awaitable[str]]) -> None:
        self._gateway_url = gateway_url
        self._key = f"Bearer {key}".encode()
        self._exchange = exchange
        self._one_at_a_time = asyncio.Lock()
        self._token, self._until = "", 0.0
        self._session: aiohttp.ClientSession

    def app(self) -> web.Application:
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_route("*", "/v1/{path:.*}", self._relay)
        app.cleanup_ctx.append(self._open)
        return app

    async def _open(self, _app: web.Application) -> AsyncIterator[None]:
        # a stream may be silent for as long as the gateway allows
        timeout = aiohttp.ClientTimeout(total=None, connect=10)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as self._session:
            yield

    async def token(self) -> str:
        """A token that is good for a while yet.

        :raises RequestFailed, aiohttp.ClientError: there was none to be had.
        """
        async with self._one_at_a_time:
            if time.time() >= self._until:
                self._token = await self._exchange()
                self._until = float(jwt.get_unverified_claims(self._token)["exp"]) - _EARLY
            return self._token

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        # Without the key any page in a browser, and any user of this machine, could spend the device's budget
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode("utf-8", "replace"), self._key):
            message = "This is not the key that mlpa device proxy printed."
            return _refused(HTTPStatus.UNAUTHORIZED, "invalid_api_key", message)
        body = await request.read()
        response: web.StreamResponse | None = None
        try:
            headers = {**_passed_on(request.headers), "Authorization": f"Bearer {await self.token()}"}
            async with self._session.request(
                request.method, f"{self._gateway_url}{request.raw_path}", headers=headers, data=body or None
            ) as answer:
                if answer.status == HTTPStatus.UNAUTHORIZED:
                    self._until = 0.0  # it was revoked: the next request gets a new one
                response = web.StreamResponse(status=answer.status, headers=_passed_on(answer.headers))
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response
        except RequestFailed as error:
            return _refused(HTTPStatus.BAD_GATEWAY, "unavailable", str(error))
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            if response is not None:
                raise  # too late for another answer: the connection ends
            return _refused(HTTPStatus.BAD_GATEWAY, "unavailable", f"{self._gateway_url}: {error}")


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _OWN}


def _refused(status: HTTPStatus, code: str, message: str) -> web.Response:
    """An error as OpenAI's SDKs read it."""
    return web.json_response({"error": {"message": message, "type": code, "code": code, "param": None}}, status=status)


async def serve(proxy: Proxy, port: int, ready: Callable[[str], object]) -> None:
    """Serve until cancelled.

    :param ready: called with the base URL.
    :raises OSError: the port is taken.
    """
    runner = web.AppRunner(proxy.app(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        await site.start()
        ready(f"http://{HOST}:{runner.addresses[0][1]}/v1")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
