"""Requests to other services: bounded in time and size, never redirected, with one error for all failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import aiohttp
from yarl import URL

_CHUNK = 64 * 1024
#: Reasons for the lack of an answer; values of metrics' labels.
REASONS = ("connection", "timeout", "status", "malformed", "rate_limited", "too_large", "insecure")


class NoAnswer(Exception):
    """There is no usable answer.

    :param reason: one of ``REASONS``.
    :param retry_after: seconds, if the service asked for a pause.
    :param sent: whether any of the request may have arrived.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None, sent: bool = True) -> None:
        self.reason, self.retry_after, self.sent = reason, retry_after, sent
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def unexpected(self, clock: Callable[[], float] = time.time) -> NoAnswer:
        """The error for an answer with an unexpected status."""
        limited = self.status == HTTPStatus.TOO_MANY_REQUESTS
        return NoAnswer("rate_limited" if limited else "status", retry_after=self._retry_after(clock))

    def _retry_after(self, clock: Callable[[], float]) -> float | None:
        """``Retry-After`` (RFC 9110 section 10.2.3), as seconds from now."""
        text = self.headers.get("Retry-After", "").strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - clock())
        except (ValueError, OverflowError):
            return None


async def ask(
    session: aiohttp.ClientSession,
    method: str,
    url: str | URL,
    *,
    limit: int,
    timeout: float,
    json: Any = None,
    form: Mapping[str, str] | None = None,
    body: bytes | None = None,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    https_only: bool = False,
    again: bool = False,
) -> Answer:
    """The answer to one request, whatever its status.

    :param limit: the most bytes that the body may have, as it is after decompression.
    :param timeout: seconds from connecting to the last byte.
    :param again: send the request again if the connection is lost before the answer begins, as happens when the server
        has closed a kept one. Only for requests that may arrive twice.
    :raises NoAnswer: no connection, or no whole answer within the bounds.
    """
    if https_only and URL(url).scheme != "https":
        raise NoAnswer("insecure", sent=False)

    async def send() -> Answer:
        async with session.request(
            method,
            url,
            json=json,
            data=form if body is None else body,
            params=params,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None),  # the whole is bounded below
        ) as response:
            answered = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                answered += chunk
                if len(answered) > limit:
                    raise NoAnswer("too_large")
            return Answer(response.status, response.headers, bytes(answered))

    try:
        async with asyncio.timeout(timeout):
            try:
                return await send()
            except (aiohttp.ClientConnectorError, aiohttp.ClientPayloadError):
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not again:
                    raise
                return await send()
    except TimeoutError as error:
        raise NoAnswer("timeout") from error
    except aiohttp.ClientConnectorError as error:
        raise NoAnswer("connection", sent=False) from error
    except (aiohttp.ClientError, OSError) as error:
        raise NoAnswer("connection") from error
    except ValueError as error:  # for a response that is not HTTP, which aiohttp does not always wrap
        raise NoAnswer("malformed") from error


async def get(
    session: aiohttp.ClientSession, url: str | URL, *, limit: int, timeout: float, https_only: bool = False
) -> bytes:
    """The body of an answer with the status 200.

    :raises NoAnswer: as ``ask``, and for any other status.
    """
    answer = await ask(session, "GET", url, limit=limit, timeout=timeout, https_only=https_only)
    if answer.status != HTTPStatus.OK:
        raise answer.unexpected()
    return answer.body
