"""Requests to FxA: bounded in time and size, never redirected, with one error for whatever goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import aiohttp

#: FxA's largest answer is its key set, of about 2 KiB.
MAX_ANSWER_BYTES = 64 * 1024


class NoAnswer(Exception):
    """FxA gave no answer that says anything about the token.

    :param reason: one of ``metrics.FAILURES``.
    :param retry_after: seconds, when FxA asked for them.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None) -> None:
        self.reason = reason
        self.retry_after = retry_after
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response other than 429 and 5xx."""

    status: int
    body: bytes


class FxAClient:
    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, *, timeout: float, clock: Callable[[], float]
    ) -> None:
        self._session = session
        self._base_url = base_url
        self._timeout = timeout
        self._clock = clock

    async def ask(self, method: str, path: str, *, json: Any = None) -> Answer:
        """
        :param path: below the base URL, with a leading slash.
        :raises NoAnswer: no connection, no whole answer in time, too large, 429 or 5xx.
        """
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    return await self._send(method, path, json)
                except (aiohttp.ClientConnectorError, aiohttp.ClientPayloadError):
                    raise
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    # Most likely an idle connection that the other side had closed. Asking twice changes nothing there.
                    return await self._send(method, path, json)
        except TimeoutError as error:
            raise NoAnswer("timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer("connection") from error
        except ValueError as error:  # a response that is not HTTP, where aiohttp does not wrap it
            raise NoAnswer("malformed") from error

    async def _send(self, method: str, path: str, json: Any) -> Answer:
        async with self._session.request(
            method,
            self._base_url + path,
            json=json,
            headers={"Accept": "application/json"},
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None),  # the whole is bounded by the caller
        ) as response:
            if response.status == HTTPStatus.TOO_MANY_REQUESTS:
                raise NoAnswer("rate_limited", retry_after=self._retry_after(response))
            if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise NoAnswer("status", retry_after=self._retry_after(response))
            return Answer(response.status, await _read(response))

    def _retry_after(self, response: aiohttp.ClientResponse) -> float | None:
        """``Retry-After`` (RFC 9110 section 10.2.3), as seconds from now."""
        text = response.headers.get("Retry-After", "").strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - self._clock())
        except (ValueError, OverflowError):
            return None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(16 * 1024):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise NoAnswer("too_large")
    return bytes(body)
