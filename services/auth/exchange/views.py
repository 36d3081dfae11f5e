"""POST /token."""

from __future__ import annotations

from typing import Literal

import msgspec
from aiohttp import web

from services.auth.errors import ErrorBody, InvalidRequest, InvalidScope, InvalidTarget, UnsupportedGrantType
from services.auth.exchange.credentials import KINDS
from services.auth.exchange.gateways import KNOWN_GATEWAYS
from services.auth.exchange.services import EXCHANGE, ExchangeRequest
from services.auth.forms import FORM, read_form
from services.auth.limits.services import LIMITS
from shared.domain.identity import Credential
from shared.domain.tokens import ACCESS_TOKEN_TYPE, AUDIENCE, GRANT_TYPE
from shared.service.web import SERVICE_TYPE, USER_ID
from shared.telemetry.openapi import Answer, Body, Operation


class TokenResponse(msgspec.Struct, frozen=True):
    access_token: str
    issued_token_type: Literal["urn:ietf:params:oauth:token-type:access_token"]
    token_type: Literal["Bearer"]
    expires_in: int
    scope: str


async def token(request: web.Request) -> web.Response:
    app = request.app
    gateways = app[KNOWN_GATEWAYS]
    source = gateways.source(request)
    async with app[LIMITS].failures("exchange", source):
        asked = parse_exchange(await read_form(request), source, from_gateway=gateways.sent(request))
    exchanged = await app[EXCHANGE].exchange(asked)
    request[SERVICE_TYPE] = exchanged.scope
    request[USER_ID] = exchanged.user_id
    answer = TokenResponse(exchanged.access_token, ACCESS_TOKEN_TYPE, "Bearer", exchanged.expires_in, exchanged.scope)
    return web.Response(
        body=msgspec.json.encode(answer),
        headers={"Content-Type": "application/json; charset=utf-8", "Pragma": "no-cache"},
    )


def parse_exchange(form: dict[str, list[str]], source: str, *, from_gateway: bool = False) -> ExchangeRequest:
    """Parse the form of an exchange.

    :param source: the client's address.
    :param from_gateway: a gateway sent the form, for its client.
    :raises InvalidRequest, UnsupportedGrantType, InvalidTarget, InvalidScope: as RFC 8693 and RFC 6749 name the fault.
    """
    one = {name: values[0] for name, values in form.items()}
    if "grant_type" not in one:
        raise InvalidRequest("grant_type is missing.")
    if one["grant_type"] != GRANT_TYPE:
        raise UnsupportedGrantType
    for name in ("subject_token", "subject_token_type"):
        if name not in one:
            raise InvalidRequest(f"{name} is missing.")
    if one.get("requested_token_type", ACCESS_TOKEN_TYPE) != ACCESS_TOKEN_TYPE:
        raise InvalidRequest("The only requested_token_type is an access token.")
    if "actor_token" in one or "actor_token_type" in one:
        raise InvalidRequest("Delegation is not supported: omit actor_token.")
    if "resource" in form or any(value != AUDIENCE for value in form.get("audience", [])):
        raise InvalidTarget
    scopes = one.get("scope", "").split(" ")
    if len(scopes) != 1 or not scopes[0]:
        raise InvalidScope
    return ExchangeRequest(one["subject_token"], one["subject_token_type"], scopes[0], source, from_gateway)


OPERATIONS = [
    Operation(
        "POST",
        "/token",
        token,
        "Exchange a credential for an access token (RFC 8693)",
        {
            200: Answer("An access token for the gateway", TokenResponse),
            400: Answer(
                "`invalid_request` (malformed; or the subject_token is invalid, expired or replayed), "
                "`unsupported_grant_type`, `invalid_scope`, `invalid_target`",
                ErrorBody,
            ),
            403: Answer("`access_denied` (blocked, revoked) or `max_users_reached`", ErrorBody),
            429: Answer(
                "`slow_down`: too many exchanges of one identity or source. Refused exchanges have a "
                "limit of their own, and keep no good credential of the same source out",
                ErrorBody,
                headers=["Retry-After"],
            ),
            503: Answer("`temporarily_unavailable`", ErrorBody, headers=["Retry-After"]),
        },
        tag="Tokens",
        body=Body(
            {
                "type": "object",
                "required": ["grant_type", "subject_token", "subject_token_type", "scope"],
                "properties": {
                    "grant_type": {"const": GRANT_TYPE},
                    "subject_token": {
                        "type": "string",
                        "description": f"Of its type: {'; or '.join(kind.words.subject_token for kind in KINDS)}.",
                    },
                    "subject_token_type": {"enum": [kind.kind.subject_token_type for kind in KINDS]},
                    "scope": {"type": "string", "description": "One service type."},
                    "audience": {"const": AUDIENCE},
                    "requested_token_type": {"const": ACCESS_TOKEN_TYPE},
                },
            },
            {
                "grant_type": GRANT_TYPE,
                "subject_token_type": Credential.FXA.subject_token_type,
                "subject_token": "5f1c0f7bd3b94ee5aa9cf27a2d4f5e68c0b4b1a3d96e4f5a8a7b6c5d4e3f2a10",
                "scope": "ai",
            },
            media_type=FORM,
        ),
    )
]
