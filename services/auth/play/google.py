"""Google's Play Integrity API: integrity tokens are decoded by Google, for a Google Cloud identity of ours.

https://developer.android.com/google/play/integrity/standard#decrypt-and
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import aiohttp
import google.auth
import msgspec
from google.auth import identity_pool, transport
from google.auth.credentials import Credentials, TokenState
from google.auth.exceptions import GoogleAuthError, TransportError
from google.oauth2 import service_account

from services.auth.breaker import Breaker, BreakerOpen
from services.auth.play.metrics import PlayMetrics
from shared import strict_json
from shared.errors import DependencyUnavailable
from shared.service import fetch
from shared.service.fetch import NoAnswer
from shared.service.flight import Flight

SCOPES = ("https://www.googleapis.com/auth/playintegrity",)
#: Seconds for an access token and the decoding together, and for the access token alone.
TIMEOUT, _TOKEN_TIMEOUT = 5.0, 4.0
_MAX_ANSWER = 64 * 1024
_BREAKER_FAILURES = 5

# the library is typed in parts
_transport_error: Callable[[str], TransportError] = TransportError
#: Makes credentials, with requests to Google if it has to.
Load = Callable[["Transport"], Credentials]


class Refused(Exception):
    """Google says that it is not an integrity token of the app."""


class NotAllowed(Exception):
    """Google does not let us decode it: the app is not our project's, or the token was made for another project.

    A client chooses the second, so it is no outage, in which no other client's token would be sent.
    """


class _Answer(msgspec.Struct, frozen=True):
    tokenPayloadExternal: msgspec.Raw = msgspec.Raw()  # noqa: N815 - Google's name


def credentials_of(path: Path | None) -> Load:
    """The loader of a credentials file; of the environment's credentials (a service account of the machine, say)
    without a file.

    :raises ValueError: it is not the key of a service account, nor the configuration of a workload identity.
    :raises OSError: it can't be read.
    """
    if path is None:
        return lambda request: google.auth.default(scopes=SCOPES, request=request)[0]
    kinds: dict[str, Any] = {
        "service_account": service_account.Credentials.from_service_account_info,
        "external_account": identity_pool.Credentials.from_info,
    }
    try:
        info = json.loads(path.read_bytes())
        made: Credentials = kinds[info["type"]](info, scopes=SCOPES)
    except (ValueError, KeyError, TypeError, GoogleAuthError) as error:
        raise ValueError("not the key of a service account, nor the configuration of a workload identity") from error
    return lambda _request: made


class PlayIntegrity:
    """A client of Google's API."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        load: Load,
        *,
        metrics: PlayMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._session = session
        self._base_url = base_url.rstrip("/").removesuffix("/v1")
        self._load, self._metrics = load, metrics
        self._credentials: Credentials | None = None
        self._breaker = Breaker(failures=_BREAKER_FAILURES, counts=(NoAnswer,), clock=clock)
        self._renewal = Flight(self._renew)
        self._decoding = Flight(self._decode)

    @classmethod
    @asynccontextmanager
    async def open(cls, *args: Any, **options: Any) -> AsyncIterator[Self]:
        """A client for as long as the context lasts."""
        client = cls(*args, **options)
        try:
            yield client
        finally:
            await client._decoding.close()
            await client._renewal.close()

    async def decode(self, package: str, integrity_token: str) -> bytes:
        """The payload of a token: JSON, of any shape. Concurrent callers share a request.

        :raises Refused: it is not an integrity token of this app.
        :raises DependencyUnavailable: Google could not be asked, or gave no usable answer.
        """
        try:
            return await self._decoding(package, integrity_token)
        except BreakerOpen as error:
            self._metrics.requests.inc("decode", "not_sent")
            raise DependencyUnavailable("play", retry_after=max(1, error.retry_after)) from None
        except NotAllowed as error:
            raise DependencyUnavailable("play") from error
        except NoAnswer as error:
            raise DependencyUnavailable("play", retry_after=max(1, error.retry_after or 0)) from error

    async def access_token(self) -> str:
        """An access token of ours for Google's API.

        :raises NoAnswer: there is none.
        """
        made = self._credentials
        if made is None or made.token_state is not TokenState.FRESH:
            try:
                await self._renewal()
            except NoAnswer as error:
                self._metrics.requests.inc("token", error.reason)
                if made is None or made.token_state is TokenState.INVALID:
                    raise
            made = self._credentials
        assert made is not None
        return str(made.token)

    async def _renew(self) -> None:
        request = Transport(self._session)
        try:
            if self._credentials is None:
                self._credentials = await asyncio.to_thread(self._load, request)
            await asyncio.to_thread(self._credentials.refresh, request)
        except TransportError as error:
            raise error.__cause__ if isinstance(error.__cause__, NoAnswer) else NoAnswer("connection") from error
        except GoogleAuthError as error:
            raise NoAnswer("status") from error
        except Exception as error:  # the library raises whatever a malformed answer leads to
            raise NoAnswer("malformed") from error
        self._metrics.requests.inc("token", "success")

    async def _decode(self, package: str, integrity_token: str) -> bytes:
        result = "not_sent"
        with self._breaker.call():
            try:
                async with asyncio.timeout(TIMEOUT):
                    token = await self.access_token()
                    result = "timeout"
                    answer = await fetch.ask(
                        self._session,
                        "POST",
                        f"{self._base_url}/v1/{package}:decodeIntegrityToken",
                        limit=_MAX_ANSWER,
                        timeout=TIMEOUT,
                        json={"integrityToken": integrity_token},
                        headers={"Authorization": f"Bearer {token}"},
                        again=True,
                    )
                payload = self._payload(answer)
                result = "success"
            except TimeoutError:
                raise NoAnswer("timeout") from None
            except NoAnswer as error:
                result = result if result == "not_sent" else error.reason
                raise
            except (Refused, NotAllowed) as error:
                result = "refused" if isinstance(error, Refused) else "status"
                raise
            finally:
                self._metrics.requests.inc("decode", result)
        return payload

    def _payload(self, answer: fetch.Answer) -> bytes:
        if answer.status == HTTPStatus.BAD_REQUEST:
            raise Refused
        if answer.status == HTTPStatus.FORBIDDEN:
            raise NotAllowed
        if answer.status == HTTPStatus.UNAUTHORIZED and self._credentials is not None:
            self._credentials.token = None  # withdrawn; the next request gets another one
        if answer.status != HTTPStatus.OK:
            raise answer.unexpected()
        try:
            payload = bytes(strict_json.decode(answer.body, _Answer).tokenPayloadExternal)
        except ValueError as error:
            raise NoAnswer("malformed") from error
        if payload in (b"", b"null"):
            raise NoAnswer("malformed")
        return payload


class Transport(transport.Request):
    """The transport by which google-auth, in a thread, sends requests through the event loop's session.

    It gives up ``_TOKEN_TIMEOUT`` seconds after it was made, however often the library tries.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._until = time.monotonic() + _TOKEN_TIMEOUT

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_options: Any,
    ) -> _Response:
        """:raises TransportError: there is no answer; its cause is a ``NoAnswer``."""
        left = min(self._until - time.monotonic(), timeout or TIMEOUT)
        asking = fetch.ask(
            self._session, method, url, limit=_MAX_ANSWER, timeout=max(left, 0), body=body, headers=headers
        )
        try:
            return _Response(asyncio.run_coroutine_threadsafe(asking, self._loop).result(TIMEOUT + 1))
        except (NoAnswer, concurrent.futures.CancelledError) as error:  # the second when the process ends
            raise _transport_error("no answer") from error


class _Response(transport.Response):
    """An answer as google-auth reads it."""

    def __init__(self, answer: fetch.Answer) -> None:
        self._answer = answer

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._answer.headers

    @property
    def data(self) -> bytes:
        return self._answer.body
