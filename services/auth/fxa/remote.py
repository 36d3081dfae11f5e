"""Verification of opaque access tokens, by asking FxA."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated

import msgspec

from services.auth.breaker import Breaker, BreakerOpen
from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.http import FxAClient
from services.auth.fxa.metrics import FxAMetrics
from services.auth.fxa.models import UID, ClientId, FxAIdentity, Generation, Scope
from services.auth.fxa.parse import OpaqueToken
from services.auth.fxa.places import NoPlace, Places
from shared.errors import DependencyUnavailable
from shared.service.fetch import Answer, NoAnswer
from shared.telemetry import logs

#: FxA's error numbers that are about the token, with the reason for the log.
REFUSALS = {108: "unknown to FxA", 109: "not a token to FxA", 115: "expired"}


_log = logs.logger("fxa")


class _Verified(msgspec.Struct, frozen=True):
    user: str
    client_id: ClientId
    scope: Annotated[list[Scope], msgspec.Meta(max_length=256)]
    generation: Generation | None = None


class _Error(msgspec.Struct, frozen=True):
    code: int
    errno: int


class RemoteVerifier:
    def __init__(
        self, client: FxAClient, breaker: Breaker, *, places: Places, metrics: FxAMetrics, clock: Callable[[], float]
    ) -> None:
        """:param breaker: counts ``NoAnswer``."""
        self._client, self._breaker, self._places = client, breaker, places
        self._metrics, self._clock = metrics, clock
        metrics.places.set(places.open)

    def check(self) -> None:
        """Check that the breaker lets tokens through.

        :raises DependencyUnavailable: there is an outage, so no token is sent to FxA now.
        """
        try:
            self._breaker.check()
        except BreakerOpen as error:
            self._metrics.refused_calls.inc("open")
            raise DependencyUnavailable("fxa", retry_after=max(1, error.retry_after)) from None

    async def verify(self, token: OpaqueToken, source: str) -> FxAIdentity:
        """The identity of an opaque token, from FxA.

        :param source: the address that sent the token.
        :raises InvalidFxAToken: FxA refuses it.
        :raises DependencyUnavailable: FxA said nothing about the token, or was not asked.
        """
        self.check()
        try:
            async with self._places.take(source):
                return await self._ask(token)
        except InvalidFxAToken:
            self._places.refused(source)
            raise
        except NoPlace:
            self._metrics.refused_calls.inc("busy")
            raise DependencyUnavailable("fxa") from None
        except BreakerOpen as error:
            self._metrics.refused_calls.inc("open")
            raise DependencyUnavailable("fxa", retry_after=max(1, error.retry_after)) from None
        except NoAnswer as error:
            self._metrics.failures.inc("verify", error.reason)
            raise DependencyUnavailable("fxa", retry_after=max(1, error.retry_after or 0)) from error

    async def _ask(self, token: OpaqueToken) -> FxAIdentity:
        """
        :raises InvalidFxAToken: FxA refuses the token.
        :raises NoAnswer: there was no usable answer.
        :raises BreakerOpen: the breaker is open.
        """
        era = self._places.era
        asked_at = self._clock()
        with self._breaker.call():
            try:
                identity = _identity(await self._client.ask("POST", "/verify", json={"token": token.text}), asked_at)
            except InvalidFxAToken:
                self._answered()
                raise
            except NoAnswer as error:
                # A 429 halves the places; verifications stop only when one place is left
                if error.reason != "rate_limited" or not self._slow_down(era):
                    raise
                throttled = error
            else:
                self._answered()
                return identity
        raise throttled

    def _answered(self) -> None:
        self._places.answered()
        self._metrics.places.set(self._places.open)

    def _slow_down(self, era: int) -> bool:
        """Halve the places. False if only one was left."""
        before = self._places.era
        slowed = self._places.halve(era)
        if self._places.era != before:
            self._metrics.places.set(self._places.open)
            _log.warning("fxa_asks_for_less", places=self._places.open)
        return slowed


def _identity(answer: Answer, asked_at: float) -> FxAIdentity:
    """
    :raises InvalidFxAToken: status 400 with one of FxA's error numbers for a bad token, or a malformed uid.
    :raises NoAnswer: any other answer that is not a verified identity.
    """
    try:
        if answer.status == HTTPStatus.OK:
            verified = msgspec.json.decode(answer.body, type=_Verified)
            if not UID.fullmatch(verified.user):
                raise InvalidFxAToken("not a uid", source="remote")
            scopes = tuple(verified.scope)
            return FxAIdentity(verified.user, verified.client_id, scopes, None, "remote", asked_at, verified.generation)
        if answer.status == HTTPStatus.BAD_REQUEST:
            refusal = REFUSALS.get(msgspec.json.decode(answer.body, type=_Error).errno)
            if refusal is not None:
                raise InvalidFxAToken(refusal, source="remote", lasting=True)
    except (ValueError, RecursionError) as error:
        raise NoAnswer("malformed") from error
    raise NoAnswer("status")
