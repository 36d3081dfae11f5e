"""The gateway's configurations as its settings have them by default, for tests to vary with ``replace``."""

from __future__ import annotations

from services.gateway.chat.config import ChatConfig
from services.gateway.relay.config import RelayConfig
from services.gateway.settings import GatewaySettings

_DEFAULTS = GatewaySettings.model_construct()
RELAY_CONFIG = RelayConfig.of(_DEFAULTS)
CHAT_CONFIG = ChatConfig.of(_DEFAULTS)
