"""Bearer authentication of a request (RFC 6750 section 2.1)."""

from __future__ import annotations

from aiohttp import web

from services.gateway.errors import InvalidToken
from services.gateway.tokens.models import Principal
from services.gateway.tokens.verifier import TokenVerifier

VERIFIER = web.AppKey("verifier", TokenVerifier)


async def bearer(request: web.Request) -> Principal:
    """The bearer of the request's access token.

    :raises InvalidToken: the token is missing or not good.
    :raises DependencyUnavailable: it could not be checked.
    """
    return await request.app[VERIFIER].verify(bearer_token(request))


def bearer_token(request: web.Request) -> str:
    """The token in the request's Authorization field.

    :raises InvalidToken: there is none, or more than one.
    """
    values = request.headers.getall("Authorization", [])
    scheme, _, token = values[0].partition(" ") if values else ("", "", "")
    if scheme.lower() != "bearer":
        raise InvalidToken("The access token is missing.", missing=True)
    if len(values) != 1 or not token:
        raise InvalidToken
    return token.strip()
