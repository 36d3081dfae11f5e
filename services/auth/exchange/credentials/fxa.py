"""An FxA OAuth access token."""

from __future__ import annotations

from typing import ClassVar

from services.auth.errors import InvalidScope, InvalidSubjectToken
from services.auth.exchange.models import Subject, Words
from services.auth.fxa import policy
from services.auth.fxa.errors import ClientNotAllowed, InvalidFxAToken, ScopeNotAllowed
from services.auth.fxa.services import FxAVerifier
from services.auth.limits import services as limits
from shared.domain.identity import Credential
from shared.domain.service_types import ServiceType


class FxACredential:
    kind: ClassVar = Credential.FXA
    words: ClassVar = Words("an FxA access token", "a Firefox account", "FxA uid", "32 hex characters")
    from_gateways: ClassVar = False

    def __init__(self, verifier: FxAVerifier) -> None:
        self._verifier = verifier

    async def verify(self, subject_token: str, row: ServiceType, source: str) -> Subject:
        try:
            identity = await self._verifier.verify(subject_token, limits.source(source))
            policy.check(identity, row)
        except InvalidFxAToken as error:
            raise InvalidSubjectToken from error
        except (ScopeNotAllowed, ClientNotAllowed) as error:
            raise InvalidScope from error
        return Subject(
            identity.uid,
            identity.client_id,
            expires_at=identity.expires_at,
            issued_at=identity.issued_at,
            generation=identity.generation,
        )
