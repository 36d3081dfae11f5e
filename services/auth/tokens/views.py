"""The key set (RFC 7517), the metadata (RFC 8414) and revocation (RFC 7009)."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from services.auth.errors import ErrorBody, InvalidRequest
from services.auth.forms import FORM, read_form
from services.auth.limits.services import LIMITS
from services.auth.settings import SERVICE_TYPES, SETTINGS
from services.auth.tokens.key_ring import KEY_RING
from services.auth.tokens.revocation import REVOCATION
from shared.domain.tokens import GRANT_TYPE
from shared.service.proxies import client_address
from shared.telemetry.openapi import Answer, Body, Operation


class Jwk(msgspec.Struct, frozen=True):
    kty: str
    crv: str
    x: str
    y: str
    use: str
    alg: str
    kid: str


class Jwks(msgspec.Struct, frozen=True):
    keys: list[Jwk]


class Metadata(msgspec.Struct, frozen=True):
    issuer: str
    token_endpoint: str
    jwks_uri: str
    revocation_endpoint: str
    token_endpoint_auth_methods_supported: list[str]
    revocation_endpoint_auth_methods_supported: list[str]
    grant_types_supported: list[str]
    response_types_supported: list[str]
    scopes_supported: list[str]
    service_documentation: str


async def jwks(request: web.Request) -> web.Response:
    return web.json_response(request.app[KEY_RING].jwks(), headers={"Cache-Control": "max-age=300"})


async def metadata(request: web.Request) -> web.Response:
    issuer = request.app[SETTINGS].mlpa_issuer
    base = issuer.rstrip("/")
    body: dict[str, Any] = {
        "issuer": issuer,
        "token_endpoint": f"{base}/token",
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "revocation_endpoint": f"{base}/revoke",
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint_auth_methods_supported": ["none"],
        "grant_types_supported": [GRANT_TYPE],
        "response_types_supported": [],
        "scopes_supported": list(request.app[SERVICE_TYPES].by_name),
        "service_documentation": f"{base}/api/docs",
    }
    return web.json_response(body, headers={"Cache-Control": "max-age=300"})


async def revoke(request: web.Request) -> web.Response:
    limits, revocation, source = request.app[LIMITS], request.app[REVOCATION], client_address(request)
    async with limits.failures("revoke", source):
        form = await read_form(request)
        if "token" not in form:
            raise InvalidRequest("token is missing.")
    token = revocation.recognise(form["token"][0])
    if token is None:
        await limits.take_failure("revoke", source)
    else:
        await limits.take_source("revoke", source)
        await revocation.revoke(token)
    return web.Response()


OPERATIONS = [
    Operation(
        "GET",
        "/.well-known/jwks.json",
        jwks,
        "The public keys of access tokens (RFC 7517)",
        {200: Answer("The key set", Jwks), 503: Answer("There is no signing key", ErrorBody, headers=["Retry-After"])},
        tag="Tokens",
    ),
    Operation(
        "GET",
        "/.well-known/oauth-authorization-server",
        metadata,
        "The metadata of this authorization server (RFC 8414)",
        {200: Answer("The metadata", Metadata)},
        tag="Tokens",
    ),
    Operation(
        "POST",
        "/revoke",
        revoke,
        "Revoke an access token (RFC 7009)",
        {
            200: Answer("The token is revoked now, or was not issued here, or had expired"),
            400: Answer("`invalid_request`", ErrorBody),
            429: Answer(
                "`slow_down`: too many from one source; tokens that aren't ours are counted apart",
                ErrorBody,
                headers=["Retry-After"],
            ),
            503: Answer("It could not be checked or recorded", ErrorBody, headers=["Retry-After"]),
        },
        tag="Tokens",
        body=Body(
            {"type": "object", "required": ["token"], "properties": {"token": {"type": "string"}}},
            {"token": "an access token"},
            media_type=FORM,
        ),
    ),
]
