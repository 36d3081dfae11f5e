"""Sessions of the console, in Redis under a digest of their id, and signed.

An attacker who reads Redis can't take a session over; one who writes to it can't make a session, prolong one, or give
one to another key.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from aiohttp import web

from services.auth.admin.access.admin_keys import AdminKey, AdminKeys
from shared.domain.tokens import CLOCK_SKEW
from shared.stores.redis import Client, needed

IDLE_SECONDS = 30 * 60
ABSOLUTE_SECONDS = 12 * 3600

_MAC_BYTES = 32

#: Writes only to an existing session: after a sign-out in another tab the entry would never expire.
_SAY = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'flash', ARGV[1])
return redis.call('EXPIRE', KEYS[1], ARGV[2])
"""

Tone = Literal["success", "warning"]


class Flash(msgspec.Struct, frozen=True):
    """The message on the page after a change."""

    text: str
    tone: Tone = "success"


class _Held(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A session's value in Redis, after its MAC. It has no role, which the configuration decides at every request."""

    name: str
    born: int
    csrf: str


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in browser. ``csrf`` is the token in every form of this session."""

    id: str
    key: AdminKey
    csrf: str
    flash: Flash | None


class Sessions:
    """The sessions. One ends 30 minutes after its last request, 12 hours after sign-in, and when its key is removed.

    Every method raises ``DependencyUnavailable`` when Redis can't be asked.
    """

    def __init__(
        self,
        redis: Client,
        admin_keys: AdminKeys,
        challenge_secrets: Sequence[bytes],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """:param challenge_secrets: a key made from the first signs sessions; signatures of all are accepted."""
        self._redis = redis
        self._say: Any = redis.register_script(_SAY)
        self._keys = admin_keys
        self._secrets = [hmac.digest(secret, b"console session", "sha256") for secret in challenge_secrets]
        self._clock = clock

    async def begin(self, key: AdminKey) -> Session:
        session = Session(secrets.token_urlsafe(32), key, secrets.token_urlsafe(32), None)
        name = _name(session.id)
        held = msgspec.msgpack.encode(_Held(key.name, int(self._clock()), session.csrf))
        signed = _mac(self._secrets[0], session.id, key, held) + held
        with needed():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hset(name, "signed", signed)
                pipeline.expire(name, IDLE_SECONDS)
                await pipeline.execute()
        return session

    async def find(self, session_id: str, *, take_flash: bool) -> Session | None:
        """The session with an id; finding it prolongs it.

        :param take_flash: take its message, which is shown once.
        """
        name = _name(session_id)
        with needed():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hgetall(name)
                pipeline.expire(name, IDLE_SECONDS)
                if take_flash:
                    pipeline.hdel(name, "flash")
                replies: Any = await pipeline.execute()
        fields: dict[bytes, bytes] = replies[0]
        if not fields:
            return None
        session = self._open(session_id, fields)
        if session is None:
            await self.end(session_id)
        return session

    def _open(self, session_id: str, fields: dict[bytes, bytes]) -> Session | None:
        signed = fields.get(b"signed", b"")
        mac, raw = signed[:_MAC_BYTES], signed[_MAC_BYTES:]
        try:
            held = msgspec.msgpack.decode(raw, type=_Held)
            flash = msgspec.json.decode(fields[b"flash"], type=Flash) if b"flash" in fields else None
        except ValueError:
            return None
        key = self._keys.named(held.name)
        if key is None:
            return None
        ours = any(hmac.compare_digest(mac, _mac(secret, session_id, key, raw)) for secret in self._secrets)
        if not ours or not -CLOCK_SKEW <= self._clock() - held.born < ABSOLUTE_SECONDS:
            return None
        return Session(session_id, key, held.csrf, flash)

    async def say(self, session: Session, flash: Flash) -> None:
        """Show a message on the next page; does nothing when the session has ended."""
        with needed():
            await self._say(keys=[_name(session.id)], args=[msgspec.json.encode(flash), IDLE_SECONDS])

    async def end(self, session_id: str) -> None:
        with needed():
            await self._redis.delete(_name(session_id))


SESSIONS = web.AppKey("sessions", Sessions)


def _name(session_id: str) -> str:
    return f"mlpa:session:{_digest(session_id).hex()}"


def _mac(secret: bytes, session_id: str, key: AdminKey, held: bytes) -> bytes:
    """The MAC covers the id, so that a copy under another id is invalid, and the key, so that a new key ends it."""
    return hmac.digest(secret, _digest(session_id) + key.digest + held, "sha256")


def _digest(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode(errors="replace")).digest()
