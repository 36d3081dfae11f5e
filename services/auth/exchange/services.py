"""Token exchange (RFC 8693): a credential for a short-lived access token."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from services.auth.errors import InvalidRequest, InvalidScope, SwitchedOff
from services.auth.exchange.models import CredentialVerifier
from services.auth.limits.services import Limits, source
from services.auth.tokens.issuer import Issuer
from services.auth.users.entry import Users
from shared.domain.identity import user_id
from shared.domain.service_types import ServiceTypes
from shared.state import decisions
from shared.telemetry.metrics import Registry


class ExchangeRequest(msgspec.Struct, frozen=True):
    """The parameters of an exchange. ``source`` is the client's address."""

    subject_token: str
    subject_token_type: str
    scope: str
    source: str
    from_gateway: bool = False


class Exchanged(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: int
    scope: str
    user_id: str


class TokenExchange:
    def __init__(
        self,
        credentials: Sequence[CredentialVerifier],
        service_types: ServiceTypes,
        users: Users,
        issuer: Issuer,
        limits: Limits,
        registry: Registry,
    ) -> None:
        self._credentials = {credential.kind.subject_token_type: credential for credential in credentials}
        self._rows = service_types.by_name
        self._users, self._issuer, self._limits = users, issuer, limits
        self._issued = registry.counter("tokens_issued_total", "Access tokens issued.", ("amr", "service_type"))
        self._kinds = [credential.kind for credential in credentials]
        self._make_series()
        service_types.on_change(self._make_series)

    def _make_series(self) -> None:
        self._issued.preset_all(self._kinds, list(self._rows))

    async def exchange(self, request: ExchangeRequest) -> Exchanged:
        """
        :raises InvalidRequest: unknown subject_token_type, or a credential that is not good (any more).
        :raises InvalidScope: no such service type, or not for this credential.
        :raises SwitchedOff: the service type is.
        :raises AccessDenied: blocked or revoked; answered only after the credential is verified.
        :raises MaxUsersReached: the service type is full.
        :raises SlowDown: a limit is reached.
        :raises DependencyUnavailable: a dependency could not be asked.
        """
        async with self._limits.failures("exchange", request.source):
            credential = self._credentials.get(request.subject_token_type)
            if credential is None:
                raise InvalidRequest("subject_token_type is not one that can be exchanged.")
            if credential.from_gateways and not request.from_gateway:
                raise InvalidRequest("Only a gateway can exchange this kind of credential.")
            row = self._rows.get(request.scope)
            if row is None or credential.kind not in row.credentials:
                raise InvalidScope
            if not row.enabled:
                raise SwitchedOff
            subject = await credential.verify(request.subject_token, row, request.source)
        reply = await self._limits.take(
            ("exchange", source(request.source)),
            ("identity", subject.identity),
            beside=decisions.ask_known(subject.identity, row.name),
        )
        await self._users.enter(
            subject.identity, row, issued_at=subject.issued_at, generation=subject.generation, reply=reply
        )
        user = user_id(subject.identity, row.name)
        token = self._issuer.issue(
            user_id=user,
            client_id=subject.client_id,
            scope=row.name,
            amr=credential.kind,
            not_after=subject.expires_at,
            ttl=subject.token_ttl,
            body_sha256=subject.body_sha256,
        )
        if subject.use_up is not None:
            async with self._limits.failures("exchange", request.source):
                await subject.use_up()
        self._issued.inc(credential.kind, row.name)
        return Exchanged(token.text, token.expires_in, row.name, user)


EXCHANGE = web.AppKey("exchange", TokenExchange)
