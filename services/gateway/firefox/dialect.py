"""The dialect of shipped Firefox clients, for the list of an app."""

from __future__ import annotations

from aiohttp import web

from services.gateway.dialects import Dialect
from services.gateway.errors import InvalidToken
from services.gateway.firefox import rendering
from services.gateway.firefox.credentials import CREDENTIALS, SERVICE_TYPE_FIELD
from services.gateway.tokens.models import Principal


def speaks(request: web.Request) -> bool:
    """Whether a request comes from such a client: others don't name the service type."""
    return SERVICE_TYPE_FIELD in request.headers


async def _authenticate(request: web.Request) -> Principal:
    if "Authorization" not in request.headers:
        raise InvalidToken("Missing authorization header", missing=True)
    return await request.app[CREDENTIALS].authenticate(request)


FIREFOX = Dialect(
    speaks=speaks,
    authenticate=_authenticate,
    error_response=rendering.error_response,
    error_event=rendering.error_event,
    events=rendering.data_lines,
    comment=b"",
    in_order=True,
)
