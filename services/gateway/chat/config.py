"""The configuration of chat: the defaults and limits of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.domain.service_types import ServiceType


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """Chat's part of the settings."""

    #: None sends nothing.
    temperature: float | None = None
    top_p: float | None = None
    max_completion_tokens: int = 8192
    image_url_hosts: frozenset[str] = frozenset()
    #: Longest time of a whole request in seconds; 0 means no limit.
    total_timeout: float = 0.0

    def sampling(self, row: ServiceType) -> dict[str, float]:
        """The sampling parameters of a request of this service type that has none."""
        given = {
            "temperature": self.temperature if row.temperature is None else row.temperature,
            "top_p": self.top_p if row.top_p is None else row.top_p,
        }
        return {name: value for name, value in given.items() if value is not None}
