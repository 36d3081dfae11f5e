"""POST /verify/play: the exchange of an install from Google Play, as shipped Firefox for Android asks for it."""

from __future__ import annotations

import base64
from typing import Literal

import msgspec
from aiohttp import web

from services.auth.errors import ErrorBody, IntegrityRejected, InvalidScope, InvalidSubjectToken
from services.auth.exchange.credentials import play
from services.auth.exchange.credentials.play import PlayInstall
from services.auth.exchange.gateways import KNOWN_GATEWAYS
from services.auth.exchange.services import EXCHANGE, ExchangeRequest
from services.auth.limits.services import LIMITS
from services.auth.settings import SERVICE_TYPES
from shared.domain.identity import Credential
from shared.service.web import SERVICE_TYPE, USER_ID
from shared.telemetry.openapi import Answer, Body, Operation


class PlayToken(msgspec.Struct, frozen=True):
    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int


async def verify(request: web.Request) -> web.Response:
    source = request.app[KNOWN_GATEWAYS].source(request)
    body = await request.read()
    async with request.app[LIMITS].failures("exchange", source):
        scope = play.parse(body).service_type or _only_row(request)
    subject_token = base64.urlsafe_b64encode(body).decode()
    asked = ExchangeRequest(subject_token, Credential.PLAY.subject_token_type, scope, source)
    try:
        exchanged = await request.app[EXCHANGE].exchange(asked)
    except InvalidSubjectToken as error:
        raise IntegrityRejected from error
    request[SERVICE_TYPE] = exchanged.scope
    request[USER_ID] = exchanged.user_id
    return web.json_response(
        {"access_token": exchanged.access_token, "token_type": "Bearer", "expires_in": exchanged.expires_in},
        headers={"Pragma": "no-cache"},
    )


def _only_row(request: web.Request) -> str:
    """:raises InvalidScope: it is not the only one."""
    rows = [row.name for row in request.app[SERVICE_TYPES].by_name.values() if Credential.PLAY in row.credentials]
    if len(rows) != 1:
        raise InvalidScope
    return rows[0]


OPERATIONS = [
    Operation(
        "POST",
        "/verify/play",
        verify,
        "Exchange a Play integrity token for an access token",
        {
            200: Answer("An access token for the gateway", PlayToken),
            400: Answer("Malformed; or no service type that takes Play Integrity", ErrorBody),
            401: Answer("The integrity token is rejected", ErrorBody, headers=["WWW-Authenticate"]),
            403: Answer("`access_denied` (blocked) or `max_users_reached`", ErrorBody),
            429: Answer("`slow_down`: too many of one install or source", ErrorBody, headers=["Retry-After"]),
            503: Answer("Google or another dependency could not be asked", ErrorBody, headers=["Retry-After"]),
        },
        description="The body is JSON whatever the content type. `requestHash` of the integrity token is SHA-256 of "
        "`user_id`, in lower-case hex. `service_type` may be missing if one row alone takes Play Integrity.",
        tag="Play Integrity",
        body=Body(
            PlayInstall,
            {
                "user_id": "2f1a6c1e-8d0b-4f57-9f0c-3b6f1f3c9a10",
                "integrity_token": "CqkCARjcZs0",
                "package_name": "org.mozilla.fenix",
            },
        ),
    )
]
