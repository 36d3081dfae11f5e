"""An install of an Android app that Google Play vouches for.

Order: parse, package, not used before, Google, its verdict; at the very end of the exchange, mark the token as used.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar

import msgspec

from services.auth.devices.metrics import timed
from services.auth.errors import InvalidRequest, InvalidSubjectToken
from services.auth.exchange.credentials.assertions import decode_subject_token
from services.auth.exchange.models import Subject, Words
from services.auth.limits.services import Limits
from services.auth.play import verdict
from services.auth.play.google import PlayIntegrity, Refused
from services.auth.play.metrics import PlayMetrics
from services.auth.play.verdict import Policy, Rejected, Step
from shared import strict_json
from shared.domain.identity import Credential, tag
from shared.domain.service_types import ServiceType
from shared.domain.tokens import CLOCK_SKEW
from shared.stores.redis import Client, needed
from shared.telemetry import logs

#: The window per source of questions to Google.
LIMIT = "play"

_log = logs.logger("play")


class PlayInstall(msgspec.Struct, frozen=True):
    """What an install sends."""

    user_id: Annotated[
        str, msgspec.Meta(pattern=r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$", max_length=36)
    ]
    integrity_token: Annotated[str, msgspec.Meta(pattern=r"^[!-~]+(?!\s)$", max_length=32 * 1024)]
    package_name: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    service_type: Annotated[str, msgspec.Meta(max_length=64)] | None = None


def parse(body: bytes) -> PlayInstall:
    """:raises InvalidRequest: it is not such an object."""
    try:
        return strict_json.decode(body, PlayInstall)
    except ValueError as error:
        raise InvalidRequest(
            "The body must be a JSON object of user_id (a UUID), integrity_token, package_name and service_type; "
            "the last two may be missing."
        ) from error


class PlayCredential:
    kind: ClassVar = Credential.PLAY
    words: ClassVar = Words(
        "base64url of a JSON object `{user_id, integrity_token, package_name, service_type}`, the last two optional",
        "an app from Google Play",
        "Play install id",
        "a UUID in lower case",
    )
    from_gateways: ClassVar = False

    def __init__(
        self,
        google: PlayIntegrity,
        policy: Policy,
        limits: Limits,
        redis: Client,
        metrics: PlayMetrics,
        *,
        token_ttl: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """:param token_ttl: the life of an access token in seconds."""
        self._google, self._policy, self._limits = google, policy, limits
        self._redis, self._metrics = redis, metrics
        self._token_ttl, self._clock = token_ttl, clock

    async def verify(self, subject_token: str, row: ServiceType, source: str) -> Subject:
        """
        :raises InvalidRequest: the package is missing, and there are several.
        :raises SlowDown: too many questions to Google from this source.
        """
        install = decode_subject_token(subject_token, PlayInstall)
        if install.service_type not in (None, row.name):
            raise InvalidSubjectToken
        with timed(self._metrics.latency):
            try:
                return await self._verify(install, row, source)
            except Rejected as error:
                raise self._rejected(error.step, row) from error

    async def _verify(self, install: PlayInstall, row: ServiceType, source: str) -> Subject:
        package = install.package_name
        if package is None:
            if len(self._policy.packages) != 1:
                raise InvalidRequest("package_name is missing.")
            (package,) = self._policy.packages
        if package not in self._policy.packages:
            raise Rejected(Step.PACKAGE)
        identity = install.user_id.lower()
        mark = f"mlpa:{tag(identity)}:c:{_digest(install.integrity_token)}"
        await self._check_unused(mark)
        await self._limits.take_source(LIMIT, source)
        try:
            payload = await self._google.decode(package, install.integrity_token)
        except Refused:
            raise Rejected(Step.TOKEN) from None
        verdict.check(
            payload,
            package=package,
            user_id=install.user_id,
            level=row.play_integrity,
            policy=self._policy,
            now=self._clock(),
        )
        return Subject(identity, package, use_up=partial(self._use_up, mark, row), token_ttl=self._token_ttl)

    async def _check_unused(self, mark: str) -> None:
        """Before Google is asked, since its quota is small."""
        with needed():
            used = await self._redis.exists(mark)
        if used:
            raise Rejected(Step.USED)

    async def _use_up(self, mark: str, row: ServiceType) -> None:
        """Of attempts with one integrity token, one gets through."""
        ours = secrets.token_bytes(8)
        with needed():
            # redis-py retries after a broken connection, and then finds what it has stored itself
            first = await self._redis.set(mark, ours, nx=True, ex=self._policy.max_age + 2 * CLOCK_SKEW)
            if first or await self._redis.get(mark) == ours:
                return
        raise self._rejected(Step.USED, row)

    def _rejected(self, step: Step, row: ServiceType) -> InvalidSubjectToken:
        """Count and log a rejection. Returns its error."""
        self._metrics.rejections.inc(str(step))
        _log.info("play_install_rejected", step=str(step), service_type=row.name)
        return InvalidSubjectToken()


def _digest(integrity_token: str) -> str:
    """One digest for all ways to write a token in base64."""
    text = integrity_token.rstrip("=").translate(str.maketrans("+/", "-_"))
    return hashlib.sha256(b"play " + text.encode()).hexdigest()[:32]
