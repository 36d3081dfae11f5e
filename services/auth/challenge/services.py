"""Challenges: authenticated rather than stored, bound to one key and to the time, used once.

A challenge is 32 bytes, shown as 64 lowercase hex characters:

    4 bytes   time of issue, seconds since the epoch, big-endian
    12 bytes  random
    16 bytes  HMAC-SHA256 over version, purpose, time, random and key id, truncated

Issuing one stores nothing. Using one stores a mark until it has expired by every replica's clock:

    mlpa:{sNN}:c:<digest of the challenge>    "t" and a digest of what was sent with it; after success
                                              "d" and a random number
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from services.auth.errors import InvalidChallenge
from shared.domain.identity import tag
from shared.domain.tokens import CLOCK_SKEW
from shared.errors import DependencyUnavailable
from shared.stores.redis import Client, needed

_PURPOSE = b"mlpa challenge v1 app-attest\x00"
_HEX = re.compile(r"[0-9a-f]{64}")


#: The first byte of a mark: an attempt that has not succeeded yet, or one that has.
_TRIED, _DONE = b"t", b"d"


@dataclass(slots=True)
class Use:
    """One use of a challenge.

    The work inside sets ``decided`` once it has proved itself to be the first of its kind, so that it counts even if
    Redis can't be updated.
    """

    decided: bool = False


class Challenges:
    """Issues and consumes challenges.

    :param challenge_secrets: the first one signs, all of them verify, so that one can be replaced.
    :param lifetime: seconds.
    """

    def __init__(
        self,
        challenge_secrets: Sequence[bytes],
        *,
        lifetime: int,
        redis: Client,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not challenge_secrets:
            raise ValueError("a challenge secret is needed")
        self._secrets = list(challenge_secrets)
        self.lifetime, self._redis, self._clock = lifetime, redis, clock

    def issue(self, key_id: str) -> str:
        """A new challenge for a canonical key id."""
        head = int(self._clock()).to_bytes(4, "big") + secrets.token_bytes(12)
        return (head + _mac(self._secrets[0], head, key_id)).hex()

    def check(self, challenge: str, key_id: str) -> None:
        """Check that a challenge is ours, for this key, and has not expired. It may have been used.

        :raises InvalidChallenge: one of these does not hold.
        """
        if not _HEX.fullmatch(challenge):
            raise InvalidChallenge
        raw = bytes.fromhex(challenge)
        head, mac = raw[:16], raw[16:]
        # every secret is tried, so that the time taken doesn't show which one signed it
        good = [hmac.compare_digest(_mac(secret, head, key_id), mac) for secret in self._secrets]
        if not any(good) or not -CLOCK_SKEW <= self._age(head) < self.lifetime:
            raise InvalidChallenge

    @asynccontextmanager
    async def consumed(self, challenge: str, key_id: str, *sent: bytes) -> AsyncIterator[Use]:
        """Consume a checked challenge for the work inside.

        The first use binds the challenge to what was sent with it. Equal bytes are the same attempt, which a client
        may repeat after a 503, until one has succeeded; after that they are a replay. Attempts with the same bytes
        may be inside at the same time: of those whose work succeeds, one leaves without an error.

        :param sent: everything from the client that affects the work.
        :raises InvalidChallenge: it has been used.
        :raises DependencyUnavailable: Redis could not be asked.
        """
        name = f"mlpa:{tag(key_id)}:c:{hashlib.sha256(challenge.encode()).hexdigest()[:32]}"
        tried = _TRIED + _digest(sent)
        await self._begin(name, tried, self.lifetime - self._age(bytes.fromhex(challenge)[:16]) + CLOCK_SKEW)
        use = Use()
        yield use
        try:
            await self._end(name, tried)
        except DependencyUnavailable:
            if not use.decided:
                raise

    async def _begin(self, name: str, tried: bytes, seconds: float) -> None:
        with needed():
            first = await self._redis.set(name, tried, nx=True, px=int(seconds * 1000))
            if not first and await self._redis.get(name) != tried:
                raise InvalidChallenge

    async def _end(self, name: str, tried: bytes) -> None:
        done = _DONE + secrets.token_bytes(8)
        with needed():
            before = await self._redis.set(name, done, xx=True, keepttl=True, get=True)
        # redis-py retries after a broken connection and may then find what it has stored itself. It finds nothing
        # if Redis lost its memory meanwhile.
        if before not in (None, tried, done):
            raise InvalidChallenge

    def _age(self, head: bytes) -> float:
        return self._clock() - int.from_bytes(head[:4], "big")


CHALLENGES = web.AppKey("challenges", Challenges)


def _digest(parts: Sequence[bytes]) -> bytes:
    """A 16-byte digest of all parts, each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()[:16]


def _mac(secret: bytes, head: bytes, key_id: str) -> bytes:
    return hmac.new(secret, _PURPOSE + head + key_id.encode(), hashlib.sha256).digest()[:16]
