"""GET /verify/challenge and POST /verify/attest."""

from __future__ import annotations

import base64
from typing import Annotated

import msgspec
from aiohttp import web

from services.auth.appattest.encoding import canonical_key_id
from services.auth.appattest.errors import AppAttestError
from services.auth.challenge.services import CHALLENGES
from services.auth.devices.enrolment import ENROLMENT, MAX_CLAIMS, AttestRequest
from services.auth.errors import ErrorBody, InvalidRequest
from services.auth.limits.services import LIMITS
from shared import strict_json
from shared.domain import tokens
from shared.service.proxies import client_address
from shared.telemetry.openapi import Answer, Body, Operation, Parameter


class Challenge(msgspec.Struct, frozen=True):
    challenge: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    expires_in: int


class Attested(msgspec.Struct, frozen=True):
    status: str


async def challenge(request: web.Request) -> web.Response:
    limits, source = request.app[LIMITS], client_address(request)
    async with limits.failures("challenge", source):
        key_id = _key_id(request)
    await limits.take_source("challenge", source)
    challenges = request.app[CHALLENGES]
    return web.json_response({"challenge": challenges.issue(key_id), "expires_in": challenges.lifetime})


async def attest(request: web.Request) -> web.Response:
    source = client_address(request)
    async with request.app[LIMITS].failures("enroll", source):
        body = await request.read()
        claims = _claims_of_json(body) if body else _claims_of_jwt(request)
        await request.app[ENROLMENT].enrol(claims, source)
    return web.json_response({"status": "success"}, status=201)


def _key_id(request: web.Request) -> str:
    given = request.query.getall("key_id_b64", [])
    if len(given) != 1:
        raise InvalidRequest("key_id_b64 must be given exactly once.")
    try:
        return canonical_key_id(given[0])
    except AppAttestError as error:
        raise InvalidRequest("key_id_b64 must be base64 of 32 bytes.") from error


def _claims_of_json(body: bytes) -> AttestRequest:
    try:
        return strict_json.decode(body, AttestRequest)
    except ValueError as error:
        raise InvalidRequest(
            "The body must be a JSON object of key_id_b64, challenge_b64, attestation_obj_b64 and bundle_id."
        ) from error


def _claims_of_jwt(request: web.Request) -> AttestRequest:
    """The claims from Firefox for iOS's JWT, whose signature uses a throw-away secret and proves nothing."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > MAX_CLAIMS:
        raise InvalidRequest("Either a JSON body, or the claims in a JWT in Authorization: Bearer.")
    try:
        _, payload, _ = token.strip().split(".")
        return tokens.decode_segment(payload, AttestRequest)
    except ValueError as error:
        raise InvalidRequest(
            "The JWT must carry key_id_b64, challenge_b64, attestation_obj_b64 and bundle_id."
        ) from error


_KEY_ID = "3q2+7wARIjNEVWZ3iJmqu8zd7v8AESIzRFVmd4iZqrs="
_EXAMPLE = {
    "key_id_b64": _KEY_ID,
    "challenge_b64": base64.b64encode(b"0123456789abcdef" * 4).decode(),
    "attestation_obj_b64": base64.b64encode(b"an attestation object").decode(),
    "bundle_id": "org.mozilla.ios.Firefox",
}
_LIMITED = Answer("Too many from one source; refused requests are counted apart", ErrorBody, headers=["Retry-After"])
_UNAVAILABLE = Answer("A dependency could not be asked", ErrorBody, headers=["Retry-After"])

OPERATIONS = [
    Operation(
        "GET",
        "/verify/challenge",
        challenge,
        "A challenge for an App Attest key",
        {
            200: Answer("A challenge, to be used once within `expires_in` seconds", Challenge),
            400: Answer("`key_id_b64` is not base64 of 32 bytes", ErrorBody),
            429: _LIMITED,
        },
        tag="App Attest",
        parameters=[
            Parameter(
                "key_id_b64",
                "Base64 of the key id (32 bytes), standard or URL-safe, padding optional; a space stands for `+`.",
                required=True,
                example=_KEY_ID,
            )
        ],
    ),
    Operation(
        "POST",
        "/verify/attest",
        attest,
        "Enrol a device's App Attest key",
        {
            201: Answer("The key is verified and stored", Attested),
            400: Answer("Malformed base64, JSON or CBOR", ErrorBody),
            401: Answer("The challenge is not ours, used, or expired", ErrorBody, headers=["WWW-Authenticate"]),
            403: Answer("The attestation is rejected, or the device revoked", ErrorBody),
            429: _LIMITED,
            503: _UNAVAILABLE,
        },
        description="`clientDataHash` is SHA-256 of the challenge's 64 hex characters. The four claims may come "
        "in a JWT in `Authorization: Bearer` with an empty body instead; its signature means nothing.",
        tag="App Attest",
        body=Body(AttestRequest, _EXAMPLE, required=False),
    ),
]
