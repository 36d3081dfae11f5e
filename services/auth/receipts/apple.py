"""Apple's App Attest server, which renews receipts (DeviceCheck, "Assessing fraud risk")."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jose import jwk, jwt

from services.auth.receipts.receipt import MAX_RECEIPT_BYTES
from shared.service import fetch
from shared.service.fetch import NoAnswer

PRODUCTION, DEVELOPMENT = "https://data.appattest.apple.com", "https://data-development.appattest.apple.com"
_PATH = "/v1/attestationData"
#: Seconds for which a token of ours is used; Apple takes one for an hour.
_TOKEN_LIFE = 1200


class Outcome(StrEnum):
    """Apple's answer about a receipt."""

    RENEWED = "renewed"
    #: 304: before the receipt's "not before" date.
    TOO_EARLY = "too_early"
    #: 404: no data for the receipt.
    UNKNOWN = "unknown"
    #: 400: of the other environment, or not a receipt to Apple.
    REFUSED = "refused"
    #: 401: not with this key, key id and team.
    UNAUTHORIZED = "unauthorized"
    #: 429.
    BUSY = "busy"
    #: 5xx, silence, or an answer that cannot be read.
    UNAVAILABLE = "unavailable"


_OUTCOMES: dict[int, Outcome] = {
    HTTPStatus.NOT_MODIFIED: Outcome.TOO_EARLY,
    HTTPStatus.BAD_REQUEST: Outcome.REFUSED,
    HTTPStatus.UNAUTHORIZED: Outcome.UNAUTHORIZED,
    HTTPStatus.NOT_FOUND: Outcome.UNKNOWN,
    HTTPStatus.TOO_MANY_REQUESTS: Outcome.BUSY,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. ``retry_after`` is in seconds, where Apple asked for a pause; ``receipt`` is not verified."""

    outcome: Outcome
    receipt: bytes = b""
    retry_after: float | None = None


class Credentials:
    """The DeviceCheck key of a team, by which Apple knows it.

    :param pem: the content of the .p8 file.
    :raises ValueError: it is not a P-256 private key.
    """

    def __init__(self, pem: bytes, *, key_id: str, team_id: str, clock: Callable[[], float] = time.time) -> None:
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ValueError("not a private key in PEM") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("not a P-256 key")  # noqa: TRY004 - a file's content, not an argument's type
        self._key: Any = jwk.construct(pem.decode(), "ES256")
        self._headers, self._team = {"kid": key_id}, team_id
        self._clock = clock
        self._made = 0.0
        self._token = ""

    @classmethod
    def read(cls, path: Path, *, key_id: str, team_id: str) -> Credentials:
        """
        :raises OSError: the file can't be read.
        :raises ValueError: it holds no P-256 private key.
        """
        return cls(path.read_bytes(), key_id=key_id, team_id=team_id)

    def token(self) -> str:
        """A JWT for Apple (ES256, ``kid``, ``iss`` and ``iat``)."""
        now = self._clock()
        if now - self._made > _TOKEN_LIFE:
            claims = {"iss": self._team, "iat": int(now)}
            self._token = jwt.encode(claims, self._key, algorithm="ES256", headers=self._headers)
            self._made = now
        return self._token


class Apple:
    """A client of Apple's server.

    :param timeout: seconds that Apple has for an answer.
    """

    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, credentials: Credentials, *, timeout: float = 15.0
    ) -> None:
        self._session, self._timeout = session, timeout
        self._url = base_url.rstrip("/") + _PATH
        self._credentials = credentials

    async def renew(self, receipt: bytes) -> Reply:
        """Ask for a newer receipt. The request may be repeated."""
        try:
            answer = await fetch.ask(
                self._session,
                "POST",
                self._url,
                limit=2 * MAX_RECEIPT_BYTES,
                timeout=self._timeout,
                body=base64.b64encode(receipt),
                headers={"Authorization": self._credentials.token(), "Content-Type": "text/plain"},
                again=True,
            )
        except NoAnswer:
            return Reply(Outcome.UNAVAILABLE)
        if answer.status != HTTPStatus.OK:
            outcome = _OUTCOMES.get(answer.status, Outcome.UNAVAILABLE)
            return Reply(outcome, retry_after=answer.unexpected().retry_after)
        try:
            return Reply(Outcome.RENEWED, base64.b64decode(answer.body.strip(), validate=True))
        except binascii.Error:
            return Reply(Outcome.UNAVAILABLE)
