"""Requests to FxA. An answer that says nothing about a token is ``NoAnswer``."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import aiohttp

from shared.service import fetch
from shared.service.fetch import Answer

#: FxA's largest answer is its key set, of about 2 KiB.
MAX_ANSWER_BYTES = 64 * 1024


class FxAClient:
    """FxA at one base URL."""

    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, *, timeout: float, clock: Callable[[], float]
    ) -> None:
        self._session, self._base_url = session, base_url
        self._timeout, self._clock = timeout, clock

    async def ask(self, method: str, path: str, *, json: Any = None) -> Answer:
        """Ask FxA.

        :param path: below the base URL, with a leading slash.
        :raises NoAnswer: no connection, no whole answer in time, too large, 429 or 5xx.
        """
        answer = await fetch.ask(
            self._session,
            method,
            self._base_url + path,
            limit=MAX_ANSWER_BYTES,
            timeout=self._timeout,
            json=json,
            headers={"Accept": "application/json"},
            again=True,  # a repeated request changes nothing at FxA
        )
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise answer.unexpected(self._clock)
        return answer

    async def key_set(self) -> bytes:
        """The body of FxA's key set.

        :raises NoAnswer: as ``ask``, and for any status but 200.
        """
        answer = await self.ask("GET", "/jwks")
        if answer.status != HTTPStatus.OK:
            raise answer.unexpected(self._clock)
        return answer.body
