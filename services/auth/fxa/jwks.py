"""FxA's public keys: fetched in the background, kept through its outages."""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from jose import jwk
from jose.backends.base import Key
from jose.exceptions import JOSEError

from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.http import FxAClient, NoAnswer
from services.auth.fxa.metrics import FxAMetrics
from shared import background, logs
from shared.errors import DependencyUnavailable

MAX_KEYS = 32
MODULUS_BITS = range(2048, 4096 + 1)
#: Any more, and one verification would take milliseconds.
EXPONENT_BITS = 32
#: How often the background task looks whether a fetch is due.
TICK_SECONDS = 1.0
#: Part of the greatest age at which the next fetch is due.
REFRESH_AT = 0.8
LONGEST_BACKOFF = 60.0
LONGEST_ASKED = 300.0

_log = logs.logger("fxa")


class _Jwk(msgspec.Struct, frozen=True):
    kty: Literal["RSA"]
    kid: Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7E]{1,128}\Z")]
    n: Annotated[str, msgspec.Meta(max_length=1024)]
    e: Annotated[str, msgspec.Meta(max_length=8)]
    alg: Literal["RS256"] = "RS256"
    use: Literal["sig"] = "sig"


class _KeySet(msgspec.Struct, frozen=True):
    keys: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_KEYS)]


def parse_key_set(body: bytes) -> dict[str, Key]:
    """The usable keys of a JWK set (RFC 7517) by ``kid``: RSA of 2048 bits or more, for RS256 signatures.

    Other keys are passed over, as is the second one of a ``kid``.

    :raises ValueError: not a key set, or none that is usable.
    """
    try:
        listed = msgspec.json.decode(body, type=_KeySet).keys
    except (ValueError, RecursionError) as error:
        raise ValueError("not a key set") from error
    keys: dict[str, Key] = {}
    for raw in listed:
        try:
            entry = msgspec.json.decode(raw, type=_Jwk)
            key = _construct(entry)
        except (ValueError, RecursionError, JOSEError):
            continue
        keys.setdefault(entry.kid, key)
    if not keys:
        raise ValueError("no usable key")
    return keys


def _construct(entry: _Jwk) -> Key:
    n, e = _integer(entry.n), _integer(entry.e)
    if n.bit_length() not in MODULUS_BITS or not 3 <= e < 2**EXPONENT_BITS or not n & e & 1:
        raise ValueError("key out of bounds")
    return jwk.construct({"kty": "RSA", "n": entry.n, "e": entry.e}, "RS256")


def _integer(text: str) -> int:
    try:
        return int.from_bytes(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except binascii.Error as error:
        raise ValueError("not base64url") from error


class KeySet:
    """FxA's keys by ``kid``.

    Bad tokens cannot make it fetch more than once in ``unknown_kid_interval``. A set that is older than ``kept``,
    since FxA could not be asked for so long, counts as none.
    """

    def __init__(
        self,
        client: FxAClient,
        *,
        max_age: float,
        kept: float,
        unknown_kid_interval: float,
        clock: Callable[[], float],
        metrics: FxAMetrics,
    ) -> None:
        self._client = client
        self._max_age = max_age
        self._kept = kept
        self._unknown_kid_interval = unknown_kid_interval
        self._clock = clock
        self._metrics = metrics
        self._keys: dict[str, Key] = {}
        self._fetched_at = 0.0
        self._due_at = 0.0
        self._failures = 0
        self._asked_at = float("-inf")  # when an unknown kid last made it fetch
        self._not_before = 0.0  # by FxA's own wish
        self._flight: asyncio.Task[None] | None = None

    @property
    def loaded(self) -> bool:
        self._drop_old()
        return bool(self._keys)

    async def get(self, kid: str) -> Key:
        """
        :raises InvalidFxAToken: FxA does not publish such a key.
        :raises DependencyUnavailable: no key set that could say so.
        """
        self._drop_old()
        key = self._keys.get(kid)
        if key is not None:
            return key
        now = self._clock()
        if self._keys and now >= self._may_ask_at():
            self._asked_at = now
            await self.refresh()
        elif self._flight is not None:
            await asyncio.shield(self._flight)
        key = self._keys.get(kid)
        if key is not None:
            return key
        if not self._keys or self._failures:  # it may be a key that FxA published since
            raise DependencyUnavailable("fxa", retry_after=max(1, self._next_fetch() - self._clock()))
        raise InvalidFxAToken("unknown key id")

    def start_refresh(self) -> asyncio.Task[None]:
        """Begin to fetch the key set, unless that is going on already."""
        if self._flight is None:
            self._flight = asyncio.create_task(self._fetch(), name="fxa-jwks")
            self._flight.add_done_callback(self._landed)
        return self._flight

    async def refresh(self) -> None:
        """Fetch the key set, once for all who ask meanwhile. Never raises for a failure: what was there is kept."""
        await asyncio.shield(self.start_refresh())

    async def tick(self) -> None:
        """Fetch when it is due, and tell the age."""
        if self._clock() >= self._due_at:
            await self.refresh()
        self._metrics.jwks_age.set(max(0.0, self._clock() - self._fetched_at) if self.loaded else -1)

    async def run(self) -> None:
        """Keep the key set fresh, until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(TICK_SECONDS)

    async def close(self) -> None:
        """End a fetch that is going on."""
        if self._flight is not None:
            await background.end(self._flight)

    def _drop_old(self) -> None:
        if self._keys and self._clock() - self._fetched_at > self._kept:
            self._keys = {}
            _log.error("fxa_key_set_dropped")

    def _may_ask_at(self) -> float:
        """When a key id that is not in the set may make it fetch."""
        return max(self._asked_at + self._unknown_kid_interval, self._not_before)

    def _next_fetch(self) -> float:
        """When a token with an unknown key id is worth trying again."""
        return min(self._due_at, self._may_ask_at()) if self._keys else self._due_at

    def _landed(self, _flight: asyncio.Task[None]) -> None:
        self._flight = None

    async def _fetch(self) -> None:
        try:
            answer = await self._client.ask("GET", "/jwks")
            if answer.status != HTTPStatus.OK:
                raise NoAnswer("status")
            keys = parse_key_set(answer.body)
        except NoAnswer as error:
            self._failed(error.reason, error.retry_after)
        except ValueError:
            self._failed("malformed", None)
        else:
            self._keys = keys
            self._failures = 0
            self._fetched_at = self._clock()
            # Spread out, so that replicas that started together do not ask together
            self._due_at = self._fetched_at + self._max_age * REFRESH_AT * random.uniform(0.9, 1)  # noqa: S311
            self._metrics.jwks_age.set(0)

    def _failed(self, reason: str, retry_after: float | None) -> None:
        self._metrics.failures.inc("jwks", reason)
        self._failures += 1
        # Without any keys every JWT waits for this one; with keys there is no hurry
        backoff = LONGEST_BACKOFF if self._keys else min(2.0 ** min(self._failures - 1, 10), LONGEST_BACKOFF)
        now = self._clock()
        self._not_before = now + min(retry_after or 0, LONGEST_ASKED)
        self._due_at = max(now + backoff, self._not_before)
        _log.warning("fxa_key_set_not_fetched", reason=reason, kept=len(self._keys))
