"""The three credentials of shipped Firefox clients, and the access token for each.

our access token (Android)          verified as it is
App Attest assertion (iOS)          over the body: exchanged at auth for each request
FxA access token (desktop)          exchanged at auth, and remembered
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

import msgspec
from aiohttp import web

from services.gateway.errors import Forbidden, InvalidRequest, InvalidToken
from services.gateway.firefox.exchanges import Exchanges
from services.gateway.relay.bodies import BODY, Bodies
from services.gateway.tokens.bearer import VERIFIER, bearer_token
from services.gateway.tokens.models import Principal
from shared.domain import tokens
from shared.domain.identity import Credential
from shared.domain.service_types import ServiceTypes
from shared.domain.tokens import encode_segment
from shared.errors import DependencyUnavailable
from shared.service.proxies import client_address
from shared.telemetry import logs

SERVICE_TYPE_FIELD = "service-type"
_TRUE = ("true", "1", "yes", "on")
#: The client data of an exchange by the device itself, which is not a body of a request: its assertion would otherwise
#: pass for one over a request.
_CLIENT_DATA = re.compile(rb'"typ"\s*:\s*"mlpa-token-exchange"')
_MAX_JWT = 12 * 1024
#: Bytes of unfinished bodies whose users are not known yet, apart from all others: strangers can fill it.
UNVERIFIED_BYTES = 64 * 1024 * 1024

_log = logs.logger("firefox")

Kind = Literal["fxa", "app_attest_request", "play"]
KINDS: dict[Kind, str] = {"fxa": "desktop", "app_attest_request": "ios", "play": "android"}
#: The kind of credential that a request carries.
KIND = web.RequestKey("firefox_credential", str)

_Text = Annotated[str, msgspec.Meta(max_length=_MAX_JWT)]


class _Claims(msgspec.Struct, frozen=True):
    """The claims of Firefox for iOS, in a JWT whose signature means nothing."""

    key_id_b64: _Text
    challenge_b64: _Text
    assertion_obj_b64: _Text
    bundle_id: _Text


class Credentials:
    """The authentication of shipped Firefox clients.

    :param bodies: reads bodies before their user is known.
    """

    def __init__(self, exchanges: Exchanges, service_types: ServiceTypes, bodies: Bodies, *, issuer: str) -> None:
        self._exchanges, self._service_types = exchanges, service_types
        self._bodies, self._issuer = bodies, issuer

    async def authenticate(self, request: web.Request) -> Principal:
        """The user of a request, in the service type that it names.

        :raises InvalidRequest: there is no such service type.
        :raises InvalidToken: the credential is missing or not good.
        :raises Forbidden, UserBlocked, MaxUsersReached, RateLimited: it is good, and refused.
        :raises DependencyUnavailable: it could not be checked.
        """
        ours = False
        try:
            token = bearer_token(request)
            ours = self._is_ours(token)
        finally:
            request[KIND] = kind_of(request, ours=ours)
        service_type = self._service_type(request)
        if ours:
            return await self._by_access_token(request, token, service_type)
        if request[KIND] == "app_attest_request":
            return await self._by_assertion(request, token, service_type)
        return await self._by_fxa_token(request, token, service_type)

    def _is_ours(self, token: str) -> bool:
        try:
            return tokens.claims_of(token).iss == self._issuer
        except ValueError:
            return False

    def _service_type(self, request: web.Request) -> str:
        rows = self._service_types.by_name
        given = request.headers.getall(SERVICE_TYPE_FIELD)
        known = len(given) == 1 and (given[0] in rows or any(given[0] in row.aliases for row in rows.values()))
        if not known:
            raise InvalidRequest("There is no such service type.", param=SERVICE_TYPE_FIELD)
        return given[0]

    async def _by_access_token(self, request: web.Request, token: str, service_type: str) -> Principal:
        principal = await request.app[VERIFIER].verify(token)
        row = principal.service_type
        if service_type != row.name and service_type not in row.aliases:
            raise Forbidden("The token is for another service type.")
        return principal

    async def _by_assertion(self, request: web.Request, token: str, service_type: str) -> Principal:
        claims = _claims(token)
        source = client_address(request)
        body = request[BODY] = await self._bodies.read(request, source)
        if _CLIENT_DATA.search(body):
            raise InvalidToken("Invalid App Attest auth")
        subject = {**msgspec.structs.asdict(claims), "body_sha256": hashlib.sha256(body).hexdigest()}
        encoded = encode_segment(msgspec.json.encode(subject))
        try:
            granted = await self._exchanges.once(Credential.APP_ATTEST_REQUEST, encoded, service_type, source)
        except InvalidToken as error:
            raise InvalidToken("Invalid App Attest auth") from error
        return await _verified(request, granted)

    async def _by_fxa_token(self, request: web.Request, token: str, service_type: str) -> Principal:
        if not token.isascii():
            raise InvalidToken("Invalid FxA auth")
        source = client_address(request)
        try:
            granted = await self._exchanges.remembered(Credential.FXA, token, service_type, source)
            try:
                return await request.app[VERIFIER].verify(granted)
            except InvalidToken:  # the key that signed it was withdrawn
                granted = await self._exchanges.remembered(Credential.FXA, token, service_type, source, renew=True)
        except InvalidToken as error:
            raise InvalidToken("Invalid FxA auth") from error
        return await _verified(request, granted)


CREDENTIALS = web.AppKey("firefox_credentials", Credentials)


async def _verified(request: web.Request, granted: str) -> Principal:
    """The bearer of an access token that auth has just granted.

    :raises DependencyUnavailable: this gateway can't verify it: it lacks the key, or its clock or issuer differs. The
        client's credential is good nevertheless.
    """
    try:
        return await request.app[VERIFIER].verify(granted)
    except InvalidToken as error:
        _log.error("granted_token_not_accepted", reason=error.message)
        raise DependencyUnavailable("auth", reason="malformed") from error


def kind_of(request: web.Request, *, ours: bool = False) -> Kind:
    """The kind of credential that a request has, or should have if it lacks one.

    :param ours: its bearer is an access token of ours.
    """
    if ours:
        return "play"
    return "app_attest_request" if request.headers.get("use-app-attest", "").strip().lower() in _TRUE else "fxa"


def _claims(token: str) -> _Claims:
    """:raises InvalidToken: it is not such a JWT."""
    parts = token.split(".")
    try:
        if len(parts) != 3 or len(token) > _MAX_JWT:
            raise ValueError("not a JWT")
        return tokens.decode_segment(parts[1].rstrip("="), _Claims)
    except ValueError as error:
        raise InvalidToken("Invalid App Attest auth") from error
