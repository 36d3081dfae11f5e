"""The configuration of the relay: limits in bytes and seconds, defaults of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.domain.service_types import ServiceType


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """The relay's part of the settings. A time of 0 means no limit."""

    max_body_bytes: int = 3 * 1024 * 1024
    body_timeout: float = 30.0
    #: None sends nothing.
    temperature: float | None = None
    top_p: float | None = None
    max_completion_tokens: int = 8192
    image_url_hosts: frozenset[str] = frozenset()
    #: A request ends after that long without data from LiteLLM.
    idle_timeout: float = 300.0
    #: Longest time of a whole request.
    total_timeout: float = 0.0
    #: Silence after which a comment line is sent.
    keepalive: float = 15.0
    #: A client that takes nothing for that long is dropped.
    slow_client: float = 60.0
    #: Open chat requests of this process; one more is refused.
    max_open_requests: int = 2500

    def sampling(self, row: ServiceType) -> dict[str, float]:
        """The sampling parameters of a request of this service type that has none."""
        given = {
            "temperature": self.temperature if row.temperature is None else row.temperature,
            "top_p": self.top_p if row.top_p is None else row.top_p,
        }
        return {name: value for name, value in given.items() if value is not None}
