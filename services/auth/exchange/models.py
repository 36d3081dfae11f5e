"""Values of a token exchange, and the protocol of a credential kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import msgspec

from shared.domain.identity import Credential
from shared.domain.service_types import ServiceType


class Subject(msgspec.Struct, frozen=True):
    """The identity that a verified credential proves. ``expires_at`` is its own end in Unix time, if any.

    ``use_up`` is for a credential that is good for one exchange. It is called last, when all else has succeeded, so
    that after any other refusal the same credential may be sent again. It raises InvalidSubjectToken when the
    credential has been used, and DependencyUnavailable.
    """

    identity: str
    client_id: str
    expires_at: float | None = None
    use_up: Callable[[], Awaitable[None]] | None = None
    #: The life of the access token in seconds; None for the usual one.
    token_ttl: int | None = None
    #: Hex of SHA-256 of the one request body that the access token is good for; None for any.
    body_sha256: str | None = None
    #: The unix time of the credential's issue, and its generation, for those that have them.
    issued_at: float | None = None
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """The words for a kind of credential in the API's documentation and in the console."""

    #: A description of the ``subject_token``: "An FxA access token".
    subject_token: str
    #: The thing with which a user signs in: "a Firefox account".
    sign_in: str
    #: The kind of an identity and its form: "FxA uid" and "32 hex characters".
    identity: str
    form: str


class CredentialVerifier(Protocol):
    """A verifier of one kind of credential."""

    kind: ClassVar[Credential]
    words: ClassVar[Words]
    #: Whether only a gateway may exchange it, which has seen the request that it belongs to.
    from_gateways: ClassVar[bool]

    async def verify(self, subject_token: str, row: ServiceType, source: str) -> Subject:
        """Verify the credential and the row's policy on it, and use nothing up.

        :param source: the client's address.
        :raises InvalidSubjectToken: malformed, invalid, expired or replayed.
        :raises InvalidScope: good, but not for this service type.
        :raises AccessDenied: good, but its device is revoked.
        :raises DependencyUnavailable: it could not be checked.
        """
        ...
