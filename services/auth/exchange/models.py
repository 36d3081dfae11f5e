"""The words of a token exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shared.service_types import Credential, ServiceType

ASSERTION_TYPE = "urn:mozilla:params:oauth:token-type:app-attest-assertion"


@dataclass(frozen=True, slots=True)
class Subject:
    """Who a verified credential stands for.

    ``amr`` is what the access token will say of it, ``expires_at`` when the credential itself ends (unix time; None
    when it does not tell).
    """

    identity: str
    client_id: str
    amr: str
    expires_at: float | None = None


class CredentialVerifier(Protocol):
    """One kind of credential."""

    #: RFC 8693's name of it.
    subject_token_type: str
    #: Its name in the rows of the service types.
    kind: Credential

    async def verify(self, subject_token: str, row: ServiceType, source: str) -> Subject:
        """Verify the credential and the row's policy on it.

        :param source: the address that it came from.
        :raises InvalidSubjectToken: malformed, invalid, expired or replayed.
        :raises InvalidScope: good, but not for this service type.
        :raises AccessDenied: good, but its device is revoked.
        :raises DependencyUnavailable: it could not be checked.
        """
        ...
