"""Request bodies. They are small in auth, and are read whole, in bounded time, before the handlers run."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

from aiohttp import web
from aiohttp.typedefs import Handler

from services.auth.errors import InvalidRequest

#: How long a body may take to arrive, in seconds.
PATIENCE = 30.0


@web.middleware
async def read_first(request: web.Request, handler: Handler) -> web.StreamResponse:
    """
    :raises InvalidRequest: it did not arrive in time.
    :raises HTTPRequestEntityTooLarge: it is over the limit; no more than that is kept.
    """
    if request.can_read_body:
        try:
            async with nullcontext() if request.content.is_eof() else asyncio.timeout(PATIENCE):
                await request.read()
        except TimeoutError:
            raise InvalidRequest("The body did not arrive in time.") from None
    return await handler(request)
