"""Reading and validating the bodies of requests, within limits per user and for all users together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from aiohttp import ClientPayloadError, web

from services.gateway.errors import InvalidRequest, Malformed, RequestTooLarge, Unavailable
from services.gateway.relay.door import Door
from services.gateway.relay.raw_json import FEW_BYTES, MAX_ITEMS, check_items, has_halves, mend_request

#: Concurrent body reads per user. Further ones queue, so that a slow sender delays only itself.
AT_ONCE = 16
#: Concurrent validations per user. Only large bodies take turns with other work.
PARSED_AT_ONCE = 4
#: Bytes up to which a body is validated in one go; a larger one gives other work a turn between the steps.
_ONE_GO = 256 * 1024
#: Bytes of unfinished bodies in this process.
MOST_BYTES = 256 * 1024 * 1024

#: Seconds in which a body has to arrive.
PATIENCE = 30.0

#: The body of a request that had to be read before its user was known.
BODY = web.RequestKey("body", bytes)

Asked = TypeVar("Asked")


class Bodies:
    """The reading and validation of bodies.

    :param limit: bytes of one body.
    :param most_bytes: of unfinished bodies, together.
    """

    def __init__(self, limit: int, most_bytes: int = MOST_BYTES, *, patience: float = PATIENCE) -> None:
        self._limit, self._most_bytes, self._patience = limit, most_bytes, patience
        self._reading, self._parsing = _Places(AT_ONCE), _Places(PARSED_AT_ONCE)
        self._held = 0
        self.door = Door()

    async def parse(self, body: bytes, user: str, parse: Callable[[bytes], Asked], most: int = MAX_ITEMS) -> Asked:
        """Validate a body, taking turns with other work if it is large.

        :param most: as for ``check_items``.
        :param parse: the operation's validation; raises ``Malformed`` for what is not JSON.
        :raises RequestTooLarge, InvalidRequest, InvalidModel: as ``parse``.
        :raises RateLimited: the door has closed while this body waited for its turn.
        """
        if len(body) <= FEW_BYTES and not has_halves(body):
            return parse(body)
        async with self._parsing.place(user):
            self.door.check(user)
            await check_items(body, most)
            await _turn(body)
            try:
                return parse(body)
            except Malformed:
                if not has_halves(body):
                    raise
            await _turn(body)
            body = await mend_request(body)
            await _turn(body)
            return parse(body)

    async def read(self, request: web.Request, user: str) -> bytes:
        """The request's body, once.

        :raises RequestTooLarge: it is over the limit, by its length or while it is read; the rest is not kept.
        :raises InvalidRequest: not JSON by its content type, cut short, or too slow.
        :raises Unavailable: too many bodies are under way.
        """
        before: bytes | None = request.pop(BODY, None)
        if before is not None:
            return before
        body = await self._read(request, user)  # first, since "too large" does not depend on the type
        _check_type(request)
        return body

    async def _read(self, request: web.Request, user: str) -> bytes:
        limit = self._limit
        if request.content_length is not None and request.content_length > limit:
            raise RequestTooLarge(f"The body is over {limit} bytes.")
        content = request.content
        try:
            if content.is_eof():
                body = content.read_nowait()
                if len(body) > limit:
                    raise RequestTooLarge(f"The body is over {limit} bytes.")
                return body
            async with asyncio.timeout(self._patience), self._reading.place(user):
                return await self._gather(request, limit)
        except TimeoutError:
            raise InvalidRequest("The body did not arrive in time.") from None
        except (web.RequestPayloadError, ClientPayloadError):
            raise InvalidRequest("The body is damaged.") from None

    async def _gather(self, request: web.Request, limit: int) -> bytes:
        parts, size = [], 0
        try:
            while part := await request.content.readany():
                size += len(part)
                self._held += len(part)
                if size > limit:
                    raise RequestTooLarge(f"The body is over {limit} bytes.")
                if self._held > self._most_bytes:
                    raise Unavailable("Too many requests are being sent.")
                parts.append(part)
            return b"".join(parts)
        finally:
            self._held -= size


async def _turn(body: bytes) -> None:
    """Give other work a turn between two steps of a large body."""
    if len(body) > _ONE_GO:
        await asyncio.sleep(0)


class _Places:
    """A number of places for each user."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._places: dict[str, asyncio.Semaphore] = {}
        self._users = Counter[str]()

    @asynccontextmanager
    async def place(self, user: str) -> AsyncIterator[None]:
        place = self._places.setdefault(user, asyncio.Semaphore(self._at_once))
        self._users[user] += 1
        try:
            async with place:
                yield
        finally:
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user], self._places[user]


def _check_type(request: web.Request) -> None:
    """:raises InvalidRequest: it is not JSON in UTF-8, by its content type."""
    if request.content_type not in ("application/json", "application/octet-stream") or (
        "Content-Type" in request.headers and request.content_type != "application/json"
    ):
        raise InvalidRequest("The content type must be application/json.")
    if (request.charset or "utf-8").lower().replace("_", "-") not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidRequest("The body must be UTF-8.")
