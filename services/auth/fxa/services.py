"""Verification of FxA tokens: parse, look up, otherwise verify locally or at FxA, then cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from services.auth.breaker import Breaker, BreakerOpen, State
from services.auth.fxa.cache import Cache, EntryKey
from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.http import FxAClient
from services.auth.fxa.jwks import key_set
from services.auth.fxa.local import verify_jwt
from services.auth.fxa.metrics import FxAMetrics
from services.auth.fxa.models import FxAConfig, FxAIdentity, Source
from services.auth.fxa.parse import JwtToken, OpaqueToken, parse
from services.auth.fxa.places import Places
from services.auth.fxa.remote import RemoteVerifier
from shared.errors import DependencyUnavailable
from shared.service import background
from shared.service.fetch import NoAnswer
from shared.service.health import CheckFailed
from shared.stores.redis import Client
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: Consecutive failures of FxA after which it is no longer asked.
BREAKER_FAILURES = 5

_Token = JwtToken | OpaqueToken
_Outcome = FxAIdentity | InvalidFxAToken | DependencyUnavailable
_log = logs.logger("fxa")


class FxAVerifier:
    """The verifier of FxA tokens. What an identity may use is decided by ``policy.check``, at every use.

    A token is verified once at a time: concurrent callers in this process share the answer, and of several processes
    one asks FxA while the others wait for the result that it stores.
    """

    def __init__(
        self,
        config: FxAConfig,
        *,
        redis: Client,
        session: aiohttp.ClientSession,
        metrics: FxAMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._clock, self._metrics = config, clock, metrics
        client = FxAClient(session, config.base_url, timeout=config.timeout, clock=clock)
        self._origin = FxAClient(session, _origin(config.base_url), timeout=config.timeout, clock=clock)
        self._breaker = Breaker(
            failures=BREAKER_FAILURES, counts=(NoAnswer,), clock=clock, on_change=self._breaker_changed
        )
        self.keys = key_set(client, config, clock=clock, metrics=metrics)
        self._cache = Cache(redis, config, clock=clock, metrics=metrics)

        self._remote = RemoteVerifier(
            client,
            self._breaker,
            places=Places(config.max_concurrency, config.source_concurrency, config.queue_wait, clock=clock),
            metrics=metrics,
            clock=clock,
        )
        self._flights: dict[bytes, asyncio.Future[_Outcome]] = {}  # by the digest of the token
        self._tasks: set[asyncio.Task[_Outcome]] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: FxAConfig,
        *,
        redis: Client,
        session: aiohttp.ClientSession,
        registry: Registry,
        clock: Callable[[], float] = time.time,
    ) -> AsyncIterator[Self]:
        """A verifier for as long as the context lasts. Opening does not wait for FxA; the first JWT does.

        :param session: without cookies; its connector should allow ``config.max_concurrency`` connections and more.
        """
        verifier = cls(config, redis=redis, session=session, metrics=FxAMetrics(registry), clock=clock)
        try:
            async with background.running(registry, fxa_key_set=verifier.keys.keep_fresh):
                yield verifier
        finally:
            await background.end(*verifier._tasks)
            await verifier.keys.close()

    async def verify(self, token: str, source: str = "") -> FxAIdentity:
        """The identity of a token.

        :param source: the address that sent it, whose concurrent verifications at FxA are limited.

        :raises InvalidFxAToken: it is not good.
        :raises DependencyUnavailable: it could not be checked.
        """
        started = time.perf_counter()
        checked: Source = "local"
        try:
            parsed = parse(token, issuer=self._config.issuer, now=self._clock(), skew=self._config.clock_skew)
            checked = "remote" if isinstance(parsed, OpaqueToken) else "local"
            identity = await self._find(parsed, source)
        except InvalidFxAToken as error:
            self._answered(started, "invalid", error.source)
            raise
        except DependencyUnavailable:
            self._metrics.latency.observe(time.perf_counter() - started, "unavailable", checked)
            raise
        self._answered(started, "success", identity.source)
        return identity

    async def purge(self, uid: str) -> int:
        """Drop the cached verifications of an account's tokens. Returns their number."""
        return await self._cache.purge(uid)

    async def held(self, uid: str) -> list[FxAIdentity]:
        """The cached identities of an account's tokens."""
        return await self._cache.held(uid)

    async def ready(self) -> None:
        """The readiness check ``fxa``.

        :raises CheckFailed: there are no keys, verifications fail, or FxA does not answer.
        """
        if not self.keys.loaded:
            raise CheckFailed("no key set yet")
        try:
            self._breaker.check()
            await self._origin.ask("GET", "/__lbheartbeat__")
        except BreakerOpen:
            raise CheckFailed("verifications fail") from None
        except NoAnswer as error:
            raise CheckFailed(f"no answer ({error.reason})") from error

    def _breaker_changed(self, state: State) -> None:
        self._metrics.breaker.set(state.value)
        if state is not State.HALF_OPEN:
            _log.warning("fxa_verifications_stopped" if state is State.OPEN else "fxa_verifications_resumed")

    def _answered(self, started: float, result: str, source: Source) -> None:
        self._metrics.verifications.inc(source)
        self._metrics.latency.observe(time.perf_counter() - started, result, source)

    async def _find(self, token: _Token, source: str) -> FxAIdentity:
        """The answer, shared by concurrent callers. Only the first caller reports the real source; the others report
        ``cache``.
        """
        key = self._cache.key(token.text)
        flight = self._flights.get(key.digest)
        if flight is not None:
            return _answer(await asyncio.shield(flight), joined=True)
        flight = self._flights[key.digest] = asyncio.get_running_loop().create_future()
        try:
            # Without a task, which would make the most frequent case a fifth slower
            found = await self._cache.get(key)
        except BaseException:  # the other callers still wait for an answer
            self._begin(key, token, source, flight)
            raise
        if found is not None:
            del self._flights[key.digest]
            flight.set_result(found)
            return _answer(found)
        self._begin(key, token, source, flight)
        return _answer(await asyncio.shield(flight))  # continues if this caller is cancelled

    def _begin(self, key: EntryKey, token: _Token, source: str, flight: asyncio.Future[_Outcome]) -> None:
        task = asyncio.create_task(self._outcome(key, token, source), name="fxa-verification")
        self._tasks.add(task)

        def landed(task: asyncio.Task[_Outcome]) -> None:
            self._tasks.discard(task)
            del self._flights[key.digest]
            if task.cancelled():  # the process is ending
                flight.cancel()
            elif (fault := task.exception()) is not None:
                _log.error("fxa_verification_failed", exc_info=fault)
                flight.set_exception(fault)
                flight.exception()  # retrieved, even if no caller is left
            else:
                flight.set_result(task.result())

        task.add_done_callback(landed)

    async def _outcome(self, key: EntryKey, token: _Token, source: str) -> _Outcome:
        try:
            if isinstance(token, JwtToken):
                return await self._verify(key, token, source)  # cheaper than taking turns
            self._remote.check()
            async with self._cache.turn(key) as found:
                return found or await self._verify(key, token, source)
        except DependencyUnavailable as error:
            return error

    async def _verify(self, key: EntryKey, token: _Token, source: str) -> FxAIdentity | InvalidFxAToken:
        outcome: FxAIdentity | InvalidFxAToken
        try:
            if isinstance(token, JwtToken):
                outcome = await verify_jwt(token, self.keys)
            else:
                outcome = await self._remote.verify(token, source)
        except InvalidFxAToken as error:
            outcome = error
        await self._cache.put(key, outcome)
        return outcome


def _answer(outcome: _Outcome, *, joined: bool = False) -> FxAIdentity:
    """The identity, or a new refusal for each caller, since a shared exception would collect all their tracebacks."""
    if isinstance(outcome, DependencyUnavailable):
        raise DependencyUnavailable(outcome.dependency, retry_after=outcome.retry_after or 1)
    if isinstance(outcome, InvalidFxAToken):
        raise InvalidFxAToken(outcome.reason, source="cache" if joined else outcome.source)
    return outcome.found_in("cache") if joined else outcome


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, "", "", ""))
