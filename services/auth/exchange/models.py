"""Values of a token exchange, and what a credential kind implements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shared.domain.service_types import Credential, ServiceType

ASSERTION_TYPE = "urn:mozilla:params:oauth:token-type:app-attest-assertion"


@dataclass(frozen=True, slots=True)
class Subject:
    """The identity that a verified credential proves.

    ``amr`` goes into the access token. ``expires_at`` is the credential's own end (unix time), None if unknown.
    """

    identity: str
    client_id: str
    amr: str
    expires_at: float | None = None


class CredentialVerifier(Protocol):
    """A verifier of one kind of credential."""

    #: Its name in RFC 8693.
    subject_token_type: str
    #: Its name in the rows of the service types.
    kind: Credential

    async def verify(self, subject_token: str, row: ServiceType, source: str) -> Subject:
        """Verify the credential and the row's policy on it.

        :param source: the client's address.
        :raises InvalidSubjectToken: malformed, invalid, expired or replayed.
        :raises InvalidScope: good, but not for this service type.
        :raises AccessDenied: good, but its device is revoked.
        :raises DependencyUnavailable: it could not be checked.
        """
        ...
