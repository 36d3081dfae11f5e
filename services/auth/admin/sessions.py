"""Sessions of the console, in Redis under a digest of their id, so that who reads Redis can't take one over."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from services.auth.admin.keys import AdminKey, AdminKeys
from shared.errors import DependencyUnavailable
from shared.redis import Client, RedisError

IDLE_SECONDS = 30 * 60
ABSOLUTE_SECONDS = 12 * 3600

Tone = Literal["success", "warning"]


class Flash(msgspec.Struct, frozen=True):
    """What the page after a change says."""

    text: str
    tone: Tone = "success"


@dataclass(frozen=True, slots=True)
class Session:
    """``csrf`` is the token that every form of this session carries."""

    id: str
    key: AdminKey
    csrf: str
    flash: Flash | None


class Sessions:
    """A session ends 30 minutes after its last request, 12 hours after sign-in, and when its key is no more.

    Every method raises ``DependencyUnavailable`` when Redis can't be asked.
    """

    def __init__(self, redis: Client, admin_keys: AdminKeys, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._keys = admin_keys
        self._clock = clock

    async def begin(self, key: AdminKey) -> Session:
        session = Session(secrets.token_urlsafe(32), key, secrets.token_urlsafe(32), None)
        name = _name(session.id)
        fields: dict[Any, Any] = {"key": key.digest.hex(), "csrf": session.csrf, "born": int(self._clock())}
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(name, mapping=fields)
                pipeline.expire(name, IDLE_SECONDS)
                await pipeline.execute()
        except RedisError as error:
            raise DependencyUnavailable("redis") from error
        return session

    async def find(self, session_id: str, *, take_flash: bool) -> Session | None:
        """The session of an id, kept alive by this.

        :param take_flash: hand out what is to be said, once.
        """
        name = _name(session_id)
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hgetall(name)
                pipeline.expire(name, IDLE_SECONDS)
                if take_flash:
                    pipeline.hdel(name, "flash")
                replies: Any = await pipeline.execute()
        except RedisError as error:
            raise DependencyUnavailable("redis") from error
        fields = {field.decode(): value.decode() for field, value in replies[0].items()}
        if not {"key", "csrf", "born"} <= fields.keys():
            return None
        key = self._keys.find_digest(bytes.fromhex(fields["key"]))
        if key is None or int(fields["born"]) + ABSOLUTE_SECONDS <= self._clock():
            await self.end(session_id)
            return None
        flash = msgspec.json.decode(fields["flash"], type=Flash) if "flash" in fields else None
        return Session(session_id, key, fields["csrf"], flash)

    async def say(self, session: Session, flash: Flash) -> None:
        """Have the next page say something."""
        try:
            reply: Any = self._redis.hset(_name(session.id), "flash", msgspec.json.encode(flash).decode())
            await reply
        except RedisError as error:
            raise DependencyUnavailable("redis") from error

    async def end(self, session_id: str) -> None:
        try:
            await self._redis.delete(_name(session_id))
        except RedisError as error:
            raise DependencyUnavailable("redis") from error


def _name(session_id: str) -> str:
    return f"mlpa:session:{hashlib.sha256(session_id.encode(errors='replace')).hexdigest()}"
