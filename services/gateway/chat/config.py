"""The configuration of chat: the defaults and limits of a request."""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.settings import GatewaySettings
from shared.domain.service_types import ServiceType


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """Chat's part of the settings."""

    #: None sends nothing.
    temperature: float | None
    top_p: float | None
    max_completion_tokens: int
    image_url_hosts: frozenset[str]
    #: Longest time of a whole request in seconds; 0 means no limit.
    total_timeout: float

    @classmethod
    def of(cls, settings: GatewaySettings) -> ChatConfig:
        return cls(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_completion_tokens=settings.max_completion_tokens,
            image_url_hosts=frozenset(settings.image_url_hosts),
            total_timeout=settings.total_timeout_seconds,
        )

    def sampling(self, row: ServiceType) -> dict[str, float]:
        """The sampling parameters of a request of this service type that has none."""
        given = {
            "temperature": self.temperature if row.temperature is None else row.temperature,
            "top_p": self.top_p if row.top_p is None else row.top_p,
        }
        return {name: value for name, value in given.items() if value is not None}
