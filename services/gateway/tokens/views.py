"""Bearer authentication of a request (RFC 6750 section 2.1)."""

from __future__ import annotations

from aiohttp import web

from services.gateway.errors import InvalidToken
from services.gateway.tokens.models import Principal
from services.gateway.tokens.verifier import TokenVerifier
from shared.service.web import SERVICE_TYPE, USER_ID

VERIFIER = web.AppKey("verifier", TokenVerifier)


async def authenticate(request: web.Request) -> Principal:
    """The bearer of the request's token, whose service type and user go to the metrics and the log line.

    :raises InvalidToken: the token is missing or not good.
    :raises DependencyUnavailable: it could not be checked.
    """
    values = request.headers.getall("Authorization", [])
    scheme, _, token = values[0].partition(" ") if values else ("", "", "")
    if scheme.lower() != "bearer":
        raise InvalidToken("The access token is missing.", missing=True)
    if len(values) != 1 or not token:
        raise InvalidToken
    principal = await request.app[VERIFIER].verify(token.strip())
    request[SERVICE_TYPE] = principal.service_type.name
    request[USER_ID] = principal.user_id
    return principal
