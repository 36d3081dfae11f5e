"""Exchanges at auth of the credentials that clients send, and the memory of those that are good for many requests."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import NamedTuple

import aiohttp
import msgspec

from services.gateway.errors import Forbidden, InvalidToken, MaxUsersReached, RateLimited, UserBlocked
from services.gateway.settings import GatewaySettings
from shared.domain.identity import Credential
from shared.domain.tokens import BLOCKED, CLIENT_HEADER, EXCHANGE_KEY_HEADER, GRANT_TYPE
from shared.errors import DependencyUnavailable, ServiceError
from shared.service import fetch, proxies
from shared.service.fetch import Answer, NoAnswer
from shared.service.flight import Flight
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: Seconds for an exchange, in which auth may have to ask FxA.
_TIMEOUT = 5.0
_MAX_BYTES = 16 * 1024
#: Seconds for which an access token is remembered, at most, and what is left of its life then.
REMEMBERED, LEFT = 240.0, 30.0
#: Seconds for which a definite refusal is remembered.
REFUSED = 5.0
MOST = 100_000
_RESULTS = ("granted", "refused", "unavailable")

_log = logs.logger("firefox")


class _Granted(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: int


class _Refused(msgspec.Struct, frozen=True):
    error: str
    error_description: str = ""


class _Kept(NamedTuple):
    """An access token until a time, or the refusal of a credential."""

    until: float
    token: str
    refusal: Callable[[], ServiceError] | None

    def granted(self) -> str:
        """The token.

        :raises ServiceError: the refusal.
        """
        if self.refusal is not None:
            raise self.refusal()
        return self.token


class Exchanges:
    """The exchange of credentials at one auth.

    :param key: makes this gateway known to auth.
    :param most: access tokens that are remembered, and as many refusals.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        registry: Registry,
        *,
        auth_url: str,
        key: bytes,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._url = f"{auth_url.rstrip('/')}/token"
        self._headers = {EXCHANGE_KEY_HEADER: key.decode()}
        self._most, self._clock = most, clock
        self._secret = secrets.token_bytes(32)
        #: Apart, so that strangers' refusals push out no good ones.
        self._granted: OrderedDict[bytes, _Kept] = OrderedDict()
        self._refused: OrderedDict[bytes, _Kept] = OrderedDict()
        self._asked: dict[bytes, tuple[Credential, str, str, str]] = {}
        self._flight = Flight(self._exchange_and_keep)
        self._exchanges = registry.counter(
            "firefox_exchanges_total", "Exchanges at auth for shipped Firefox clients.", ("credential", "result")
        )
        self._exchanges.preset_all([Credential.FXA, Credential.APP_ATTEST_REQUEST], _RESULTS)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: GatewaySettings, registry: Registry) -> AsyncIterator[Exchanges]:
        """Open exchanges with a session of their own, for a gateway that has an EXCHANGE_KEY."""
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            auth = settings.auth_url or settings.mlpa_issuer
            exchanges = cls(session, registry, auth_url=auth, key=settings.exchange_keys()[0])
            yield exchanges
            await exchanges.close()

    async def close(self) -> None:
        await self._flight.close()

    async def once(self, kind: Credential, subject_token: str, service_type: str, source: str) -> str:
        """An access token for a credential that is good for one request.

        :raises InvalidToken, Forbidden, UserBlocked, MaxUsersReached, RateLimited: auth refuses it.
        :raises DependencyUnavailable: auth could not be asked, or could not check it.
        """
        return (await self._exchange(kind, subject_token, service_type, source)).granted()

    async def remembered(
        self, kind: Credential, subject_token: str, service_type: str, source: str, *, renew: bool = False
    ) -> str:
        """An access token for a credential that is good for many requests: concurrent and later ones share it.

        :param renew: exchange again, since the remembered access token is no longer good.
        :raises: as ``once``.
        """
        digest = hmac.digest(self._secret, f"{service_type}\0{subject_token}".encode(), hashlib.sha256)
        kept = None if renew else self._granted.get(digest) or self._refused.get(digest)
        if kept is None or kept.until <= self._clock():
            if not self._flight.under_way(digest):
                self._asked[digest] = (kind, subject_token, service_type, source)
            kept = await self._flight(digest)
        return kept.granted()

    async def known(self) -> bool:
        """Whether auth knows the key: for a kind that gateways alone may exchange, it then looks at the service type.

        :raises NoAnswer: auth could not be asked, or says neither.
        """
        answer = await self._post(Credential.APP_ATTEST_REQUEST, "none", "!", proxies.UNKNOWN)
        try:
            error = msgspec.json.decode(answer.body, type=_Refused).error
        except msgspec.DecodeError:
            raise NoAnswer("malformed") from None
        if answer.status != HTTPStatus.BAD_REQUEST or error not in ("invalid_request", "invalid_scope"):
            raise answer.unexpected()
        return error == "invalid_scope"

    async def _exchange_and_keep(self, digest: bytes) -> _Kept:
        kept = await self._exchange(*self._asked.pop(digest))
        self._granted.pop(digest, None)
        self._refused.pop(digest, None)
        if kept.until > self._clock():
            memory = self._granted if kept.refusal is None else self._refused
            memory[digest] = kept
            if len(memory) > self._most:
                memory.popitem(last=False)
        return kept

    async def _exchange(self, kind: Credential, subject_token: str, service_type: str, source: str) -> _Kept:
        result = "unavailable"
        try:
            kept = await self._ask(kind, subject_token, service_type, source)
            result = "granted" if kept.refusal is None else "refused"
        finally:
            self._exchanges.inc(kind, result)
        return kept

    async def _ask(self, kind: Credential, subject_token: str, service_type: str, source: str) -> _Kept:
        try:
            return self._read(await self._post(kind, subject_token, service_type, source))
        except NoAnswer as error:
            _log.warning("exchange_not_answered", reason=error.reason)
            raise DependencyUnavailable("auth", retry_after=error.retry_after or 1, reason=error.reason) from error

    async def _post(self, kind: Credential, subject_token: str, service_type: str, source: str) -> Answer:
        """:raises NoAnswer: auth could not be asked."""
        form = {
            "grant_type": GRANT_TYPE,
            "subject_token": subject_token,
            "subject_token_type": kind.subject_token_type,
            "scope": service_type,
        }
        client = {} if source == proxies.UNKNOWN else {CLIENT_HEADER: source}
        return await fetch.ask(
            self._session,
            "POST",
            self._url,
            form=form,
            headers={**self._headers, **client},
            limit=_MAX_BYTES,
            timeout=_TIMEOUT,
            # a device's counter is taken once: the second try would be refused although the first one was good
            again=kind is not Credential.APP_ATTEST_REQUEST,
        )

    def _read(self, answer: Answer) -> _Kept:
        """:raises NoAnswer: it says neither yes nor no."""
        now = self._clock()
        try:
            if answer.status == HTTPStatus.OK:
                granted = msgspec.json.decode(answer.body, type=_Granted)
                return _Kept(now + min(REMEMBERED, granted.expires_in - LEFT), granted.access_token, None)
            refused = msgspec.json.decode(answer.body, type=_Refused)
        except msgspec.DecodeError:
            raise NoAnswer("malformed") from None
        unexpected = answer.unexpected()
        match answer.status, refused.error:
            case HTTPStatus.TOO_MANY_REQUESTS, "slow_down":
                return _Kept(now, "", lambda: RateLimited(reason="exchange", retry_after=unexpected.retry_after or 1))
            case HTTPStatus.FORBIDDEN, "access_denied" if refused.error_description == BLOCKED:
                return _Kept(now + REFUSED, "", UserBlocked)
            case HTTPStatus.FORBIDDEN, "max_users_reached":
                return _Kept(now + REFUSED, "", MaxUsersReached)
            case (HTTPStatus.FORBIDDEN, "access_denied") | (HTTPStatus.BAD_REQUEST, "invalid_scope"):
                return _Kept(now + REFUSED, "", Forbidden)
            case HTTPStatus.BAD_REQUEST, "invalid_request":
                return _Kept(now + REFUSED, "", InvalidToken)
        raise unexpected
