"""Challenges: authenticated rather than stored, bound to one key and to the time, used once.

A challenge is 32 bytes, shown as 64 lowercase hex characters:

    4 bytes   time of issue, seconds since the epoch, big-endian
    12 bytes  random
    16 bytes  HMAC-SHA256 over version, purpose, time, random and key id, truncated

Issuing one stores nothing. Using one stores its digest until it has expired by every replica's clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from services.auth.errors import InvalidChallenge, SlowDown
from shared.errors import DependencyUnavailable
from shared.identity import tag
from shared.redis import Client, RedisError
from shared.tokens import CLOCK_SKEW

_PURPOSE = b"mlpa challenge v1 app-attest\x00"
_HEX = re.compile(r"[0-9a-f]{64}")


class Challenges:
    """Issues and consumes challenges.

    :param challenge_secrets: the first makes, all verify: that is how one is replaced.
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
        self.lifetime = lifetime
        self._redis = redis
        self._clock = clock

    def issue(self, key_id: str) -> str:
        """A new challenge for a canonical key id."""
        head = int(self._clock()).to_bytes(4, "big") + secrets.token_bytes(12)
        return (head + _mac(self._secrets[0], head, key_id)).hex()

    def check(self, challenge: str, key_id: str) -> None:
        """That a challenge is one of ours, for this key, and in time. Does not tell whether it was used.

        :raises InvalidChallenge:
        """
        if not _HEX.fullmatch(challenge):
            raise InvalidChallenge
        raw = bytes.fromhex(challenge)
        head, mac = raw[:16], raw[16:]
        # every secret is tried, so that the time taken doesn't tell which one made it
        good = [hmac.compare_digest(_mac(secret, head, key_id), mac) for secret in self._secrets]
        if not any(good) or not -CLOCK_SKEW <= self._age(head) < self.lifetime:
            raise InvalidChallenge

    @asynccontextmanager
    async def consumed(self, challenge: str, key_id: str) -> AsyncIterator[None]:
        """Use a checked challenge up for the work inside; of any number of attempts at the same time, one gets in.

        Work that could not be done gives the challenge back, since clients send the same again after a 503 or a 429.
        Should it have been done all the same, the work itself must notice the second time.

        :raises InvalidChallenge: it has been used.
        :raises DependencyUnavailable: Redis could not be asked.
        """
        name = f"mlpa:{tag(key_id)}:c:{hashlib.sha256(challenge.encode()).hexdigest()[:32]}"
        await self._consume(name, self.lifetime - self._age(bytes.fromhex(challenge)[:16]) + CLOCK_SKEW)
        try:
            yield
        except (DependencyUnavailable, SlowDown, asyncio.CancelledError):
            with suppress(RedisError):
                await self._redis.delete(name)
            raise

    async def _consume(self, name: str, seconds: float) -> None:
        attempt = secrets.token_bytes(8)
        try:
            first = await self._redis.set(name, attempt, nx=True, px=int(seconds * 1000))
            # The client asks again when a connection broke: then this may be what its first attempt has stored
            if not first and await self._redis.get(name) != attempt:
                raise InvalidChallenge
        except RedisError as error:
            raise DependencyUnavailable("redis") from error

    def _age(self, head: bytes) -> float:
        return self._clock() - int.from_bytes(head[:4], "big")


def _mac(secret: bytes, head: bytes, key_id: str) -> bytes:
    return hmac.new(secret, _PURPOSE + head + key_id.encode(), hashlib.sha256).digest()[:16]
