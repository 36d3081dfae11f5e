"""The public keys of another service, by ``kid``: refreshed in time, and kept for a day through an outage."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated

import msgspec
from jose.backends.base import Key
from jose.exceptions import JOSEError

from shared.domain.tokens import KEY_SET_KEPT
from shared.errors import DependencyUnavailable
from shared.service.fetch import NoAnswer
from shared.service.flight import Flight
from shared.telemetry.metrics import Gauge

MAX_KEYS = 32
#: How often the background task looks whether a reading is due, in seconds.
TICK = 1.0
#: The most seconds that a reading is put off because the service asks for it.
LONGEST_ASKED = 300.0


class _Jwks(msgspec.Struct, frozen=True):
    keys: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_KEYS)]


def parse(body: bytes, construct: Callable[[msgspec.Raw], tuple[str, Key]]) -> dict[str, Key]:
    """The usable keys of a JWK set (RFC 7517 section 5) by ``kid``. The first key of a ``kid`` counts.

    :param construct: the ``kid`` and the key of one entry; raises ValueError or JOSEError to skip it.
    :raises ValueError: not a key set, or no key in it is usable.
    """
    try:
        listed = msgspec.json.decode(body, type=_Jwks).keys
    except (ValueError, RecursionError) as error:
        raise ValueError("not a key set") from error
    keys: dict[str, Key] = {}
    for entry in listed:
        try:
            kid, key = construct(entry)
        except (ValueError, RecursionError, JOSEError):
            continue
        keys.setdefault(kid, key)
    if not keys:
        raise ValueError("no usable key")
    return keys


class KeySet:
    """The keys that may have signed a token.

    Tokens with invented kids cause one reading per ``unknown_kid`` seconds at most. A reading that fails, or that finds
    no usable key, replaces nothing. A key that is published unchanged stays the same object.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        parse: Callable[[bytes], dict[str, Key]],
        *,
        dependency: str,
        refresh: float,
        retry: Sequence[float],
        unknown_kid: float,
        clock: Callable[[], float],
        age: Gauge,
        on_read: Callable[[str | None], None],
        on_drop: Callable[[], None],
        kept: float = KEY_SET_KEPT,
    ) -> None:
        """
        :param fetch: the body of the key set; raises NoAnswer.
        :param parse: its keys by ``kid``, at least one; raises ValueError.
        :param dependency: the name of the service in ``DependencyUnavailable``.
        :param refresh: seconds between readings.
        :param retry: seconds to the next reading after the first failure, the second and so on; the last for all more.
        :param age: shows the seconds since the keys were read; -1 while there are none.
        :param on_read: called after each reading with the reason of its failure, or None.
        :param on_drop: called when the keys are dropped because they could not be read again for ``kept`` seconds.
        """
        self._fetch, self._parse, self._dependency = fetch, parse, dependency
        self._every = refresh
        self._retry, self._unknown_kid, self._clock = retry, unknown_kid, clock
        self._age, self._on_read = age, on_read
        self._on_drop, self._kept = on_drop, kept
        #: Failed readings since the last successful one.
        self.failures = 0
        #: Reason of the last reading's failure; None if it succeeded.
        self.failure: str | None = None
        self._keys: dict[str, Key] = {}
        self._read_at = float("-inf")
        self._due_at = float("-inf")
        self._asked_at = float("-inf")  # when an unknown kid last caused a reading
        self._not_before = float("-inf")  # as the service asked
        self._reading = Flight(self._read)
        age.set(-1)

    @property
    def loaded(self) -> bool:
        """Whether there are keys."""
        self._drop_old()
        return bool(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def holds(self, kid: str, key: Key) -> bool:
        """Whether this very key, as ``get`` gave it, is still the one of its kid. Reads nothing."""
        return self._keys.get(kid) is key

    async def get(self, kid: str) -> Key | None:
        """The key of a kid; None if the service publishes no such key.

        :raises DependencyUnavailable: it isn't known here, and the service could not be asked.
        """
        self._drop_old()
        key = self._keys.get(kid)
        if key is not None:
            return key
        now = self._clock()
        if now >= self._may_read_at() or self._reading.under_way():
            if not self._reading.under_way():
                self._asked_at = now
            await self.refresh()
            key = self._keys.get(kid)
        if key is None and (self.failures or not self._keys):  # the service may have published it since
            wait = min(self._due_at, self._may_read_at()) - self._clock()
            raise DependencyUnavailable(self._dependency, retry_after=max(1, wait))
        return key

    async def refresh(self) -> None:
        """Read the keys, once for concurrent callers. Failures go to ``on_read`` and are not raised."""
        await self._reading()

    async def tick(self) -> None:
        """Read the keys if that is due, and show their age."""
        if self._clock() >= self._due_at:
            await self.refresh()
        self._age.set(max(0.0, self._clock() - self._read_at) if self.loaded else -1)

    async def keep_fresh(self) -> None:
        """Read the keys in time, until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(TICK)

    async def close(self) -> None:
        """Cancel a running reading."""
        await self._reading.close()

    def _may_read_at(self) -> float:
        """When an unknown kid may cause a reading; without any keys, every kid is unknown."""
        return max(self._asked_at + self._unknown_kid, self._not_before) if self._keys else self._due_at

    async def _read(self) -> None:
        try:
            keys = self._parse(await self._fetch())
        except NoAnswer as error:
            self._failed(error.reason, error.retry_after or 0)
        except ValueError:
            self._failed("malformed", 0)
        else:
            self.failures, self.failure = 0, None
            self._read_at = self._clock()
            # Spread out, so that processes that started together do not ask together
            self._due_at = self._read_at + self._every * random.uniform(0.9, 1)  # noqa: S311
            self._age.set(0)
            before = self._keys
            self._keys = {
                kid: before[kid] if kid in before and _equal(before[kid], key) else key for kid, key in keys.items()
            }
            self._on_read(None)

    def _failed(self, reason: str, retry_after: float) -> None:
        pause = self._retry[min(self.failures, len(self._retry) - 1)]
        self.failures += 1
        self.failure = reason
        now = self._clock()
        self._not_before = now + min(retry_after, LONGEST_ASKED)
        self._due_at = max(now + pause, self._not_before)
        self._on_read(reason)

    def _drop_old(self) -> None:
        if self._keys and self._clock() - self._read_at > self._kept:
            self._keys = {}
            self._on_drop()


def _equal(one: Key, other: Key) -> bool:
    mine: Mapping[str, object] = one.to_dict()
    return mine == other.to_dict()
