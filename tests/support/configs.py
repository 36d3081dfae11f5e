"""The gateway's configurations as its settings have them by default, for tests to vary with ``replace``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.gateway.chat.config import ChatConfig
from services.gateway.health import upstream_config
from services.gateway.relay.config import RelayConfig
from services.gateway.settings import GatewaySettings
from services.gateway.upstream.client import UpstreamConfig

_DEFAULTS = GatewaySettings.model_construct()
RELAY_CONFIG = RelayConfig.of(_DEFAULTS)
CHAT_CONFIG = ChatConfig.of(_DEFAULTS)


def upstream_at(*base_urls: str, **changes: Any) -> UpstreamConfig:
    return replace(upstream_config(_DEFAULTS), base_urls=base_urls, **changes)
