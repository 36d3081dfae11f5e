"""The bearer of an access token."""

from __future__ import annotations

from dataclasses import dataclass

from shared.domain.service_types import ServiceType


@dataclass(frozen=True, slots=True)
class Principal:
    """The bearer of a verified access token. ``user_id`` is its ``sub``, ``expires_at`` in Unix time.

    ``body_sha256``: hex digest of the one request body that the token is good for; None for any. ``issued_at``: in Unix
    time; 0 is older than the oldest that is good.
    """

    user_id: str
    identity: str
    service_type: ServiceType
    jti: str
    expires_at: float
    body_sha256: str | None = None
    issued_at: int = 0
