"""The configuration that all paid operations share: limits in bytes and seconds."""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """The relay's part of the settings. A time of 0 means no limit."""

    max_body_bytes: int
    #: A request ends after that long without data from LiteLLM.
    idle_timeout: float
    #: Silence after which a comment line is sent.
    keepalive: float
    #: A client that takes nothing for that long is dropped.
    slow_client: float
    body_timeout: float = 30.0

    @classmethod
    def of(cls, settings: GatewaySettings) -> RelayConfig:
        return cls(
            max_body_bytes=settings.max_request_size_bytes,
            idle_timeout=settings.streaming_timeout_seconds,
            keepalive=settings.keepalive_seconds,
            slow_client=settings.slow_client_seconds,
        )
