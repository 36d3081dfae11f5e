"""The configuration that all paid operations share: limits in bytes and seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """The relay's part of the settings. A time of 0 means no limit."""

    max_body_bytes: int = 3 * 1024 * 1024
    body_timeout: float = 30.0
    #: A request ends after that long without data from LiteLLM.
    idle_timeout: float = 300.0
    #: Silence after which a comment line is sent.
    keepalive: float = 15.0
    #: A client that takes nothing for that long is dropped.
    slow_client: float = 60.0
