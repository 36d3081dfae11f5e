"""Opaque access tokens, verified by asking FxA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

import msgspec

from services.auth.fxa.breaker import Breaker, BreakerOpen
from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.http import Answer, FxAClient, NoAnswer
from services.auth.fxa.metrics import FxAMetrics
from services.auth.fxa.models import UID, ClientId, FxAIdentity, Scope
from services.auth.fxa.parse import OpaqueToken
from shared.errors import DependencyUnavailable

#: FxA's error numbers that say something of the token, and what.
REFUSALS = {108: "unknown to FxA", 109: "not a token to FxA", 115: "expired"}


class _Verified(msgspec.Struct, frozen=True):
    user: str
    client_id: ClientId
    scope: Annotated[list[Scope], msgspec.Meta(max_length=256)]


class _Error(msgspec.Struct, frozen=True):
    code: int
    errno: int


class RemoteVerifier:
    def __init__(
        self,
        client: FxAClient,
        breaker: Breaker,
        *,
        max_concurrency: int,
        queue_wait: float,
        metrics: FxAMetrics,
    ) -> None:
        """:param breaker: counts ``NoAnswer``."""
        self._client = client
        self._breaker = breaker
        self._places = asyncio.Semaphore(max_concurrency)
        self._queue_wait = queue_wait
        self._metrics = metrics

    def check(self) -> None:
        """:raises DependencyUnavailable: when a token would not be sent to FxA now, because of an outage."""
        try:
            self._breaker.check()
        except BreakerOpen as error:
            self._metrics.refused_calls.inc("open")
            raise DependencyUnavailable("fxa", retry_after=max(1, error.retry_after)) from None

    async def verify(self, token: OpaqueToken) -> FxAIdentity:
        """
        :raises InvalidFxAToken: FxA says so.
        :raises DependencyUnavailable: FxA said nothing about the token, or was not asked.
        """
        self.check()
        async with self._place():
            try:
                with self._breaker.call():
                    return _identity(await self._client.ask("POST", "/verify", json={"token": token.text}))
            except BreakerOpen as error:
                self._metrics.refused_calls.inc("open")
                raise DependencyUnavailable("fxa", retry_after=max(1, error.retry_after)) from None
            except NoAnswer as error:
                self._metrics.failures.inc("verify", error.reason)
                raise DependencyUnavailable("fxa", retry_after=max(1, error.retry_after or 0)) from error

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._queue_wait):
                await self._places.acquire()
        except TimeoutError:
            self._metrics.refused_calls.inc("busy")
            raise DependencyUnavailable("fxa") from None
        try:
            yield
        finally:
            self._places.release()


def _identity(answer: Answer) -> FxAIdentity:
    """
    :raises InvalidFxAToken: status 400 with one of FxA's error numbers for a bad token, or a uid that is none.
    :raises NoAnswer: whatever else is not a verified identity.
    """
    try:
        if answer.status == HTTPStatus.OK:
            verified = msgspec.json.decode(answer.body, type=_Verified)
            if not UID.fullmatch(verified.user):
                raise InvalidFxAToken("not a uid", source="remote")
            return FxAIdentity(verified.user, verified.client_id, tuple(verified.scope), None, "remote")
        if answer.status == HTTPStatus.BAD_REQUEST:
            refusal = REFUSALS.get(msgspec.json.decode(answer.body, type=_Error).errno)
            if refusal is not None:
                raise InvalidFxAToken(refusal, source="remote", lasting=True)
    except (ValueError, RecursionError) as error:
        raise NoAnswer("malformed") from error
    raise NoAnswer("status")
