"""The gateway's settings as they are by default, for tests to vary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.gateway.health import upstream_config
from services.gateway.settings import GatewaySettings
from services.gateway.upstream.client import UpstreamConfig

SETTINGS = GatewaySettings.model_construct()


def changed(**changes: Any) -> GatewaySettings:
    return SETTINGS.model_copy(update=changes)


def upstream_at(*base_urls: str, **changes: Any) -> UpstreamConfig:
    return replace(upstream_config(SETTINGS), base_urls=base_urls, **changes)
