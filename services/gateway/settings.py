"""The settings of the gateway, beside those that both services share."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, SecretStr

from shared.service import start_rules
from shared.service.settings import CommaSeparated, Limit, Settings
from shared.service.start_rules import Rule


class GatewaySettings(Settings):
    rules: ClassVar[tuple[Rule, ...]] = (*Settings.rules, start_rules.auth_url)

    port: int = Field(8080, ge=0, le=65535, description="Port of the gateway.")
    mlpa_jwks_url: str | None = Field(
        None, description="Auth's key set; found through the issuer's metadata if not set."
    )
    auth_url: str | None = Field(
        None, description="Where credentials are exchanged with FIREFOX_CLIENTS; MLPA_ISSUER if not set."
    )
    client_keys: SecretStr | None = Field(
        None, description="Keys that service types need in x-dev-authorization: name:sha256hex, comma-separated."
    )
    client_metrics: bool = Field(
        False, description="Count requests by country (X-Geo-Country of a trusted proxy) and version of Firefox."
    )
    client_metrics_series: int = Field(5000, ge=1, description="Most series of that metric; further ones are `other`.")
    mlpa_virtual_key: SecretStr | None = Field(None, description="LiteLLM's virtual key.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="`temperature` of a request that has neither it nor `top_p`; not sent if not set."
    )
    top_p: float | None = Field(
        None, ge=0, le=1, description="`top_p` of a request that has neither it nor `temperature`; not sent if not set."
    )
    max_completion_tokens: int = Field(8192, ge=1, le=10**6, description="Default completion limit of a request.")
    max_request_size_bytes: int = Field(3 * 1024 * 1024, ge=1024, description="Largest request body of the gateway.")
    image_url_hosts: CommaSeparated = Field((), description="Hosts of https image URLs that may be passed on.")
    streaming_timeout_seconds: float = Field(300, gt=0, description="No data for that long is a timeout.")
    total_timeout_seconds: float = Field(0, ge=0, description="Longest that a request may take; 0 = no limit.")
    keepalive_seconds: float = Field(15, gt=0, description="A comment line is sent after that long without data.")
    slow_client_seconds: float = Field(
        60,
        gt=0,
        description="A client that takes no data for that long is dropped; also one that needs more than five times "
        "that for a large answer that is no stream.",
    )
    max_open_requests: Limit = Field(
        2500, description="Open chats, searches and requests for embeddings of one process; 0 = no limit."
    )
    max_outbox_rows: Limit = Field(
        100_000,
        description="Ledger rows of each of Redis' 64 shards, some 350 bytes each, that may wait for PostgreSQL before "
        "chat is refused; 0 = no limit.",
    )
    litellm_health_seconds: float = Field(2, gt=0, description="Pause between two health checks of LiteLLM.")
    litellm_health_timeout_seconds: float = Field(
        5, gt=0, description="A health check of LiteLLM that takes longer has failed."
    )
    model_info_seconds: float = Field(60, gt=0, description="Pause between two readings of models and prices.")

    def needed(self) -> list[str]:
        return [*super().needed(), "mlpa_virtual_key"]
