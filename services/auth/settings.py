"""The settings of auth, beside those that both services share."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from aiohttp import web
from pydantic import Field, SecretStr

from shared.domain.service_types import ServiceTypes
from shared.service import start_rules
from shared.service.settings import CommaSeparated, Limit, Settings, secret_parts
from shared.service.start_rules import Rule
from shared.service.strength import AdminSecret, Secret, SecretList


class AuthSettings(Settings):
    development: ClassVar[dict[str, str]] = {
        **Settings.development,
        "mlpa_signing_keys_dir": ".mlpa/keys",
        "challenge_secret": "development-challenge-secret",
        "fxa_cache_secret": "development-fxa-cache-secret",
        "app_development_team": "DEVELOPMNT",
        "app_attest_bundle_ids": "org.mozilla.ios.Fennec",
    }

    rules: ClassVar[tuple[Rule, ...]] = (*Settings.rules, start_rules.fxa_is_one_stack)

    auth_port: int = Field(8081, ge=0, le=65535, description="Port of auth.")
    mlpa_signing_keys_dir: Path | None = Field(None, description="Folder of the ES256 keys that sign tokens (PEM).")
    mlpa_access_token_ttl_seconds: int = Field(300, ge=10, le=3600, description="Life of an access token.")
    key_activation_seconds: int = Field(
        3600, ge=0, description="How long a new signing key is published before it signs."
    )
    challenge_expiry_seconds: int = Field(300, ge=1, le=3600, description="How long a challenge can be used.")
    challenge_secret: SecretList = Field(
        None, description="HMAC key of challenges; a comma-separated list: the first makes, all verify."
    )
    app_development_team: str = Field("", description="Apple team id, first part of the app id.")
    app_attest_bundle_ids: CommaSeparated = Field((), description="Bundle ids that may enrol, comma-separated.")
    app_attest_production: bool = Field(False, description="Accept App Attest's production keys, not development's.")
    app_attest_root_ca: Path | None = Field(None, description="PEM of the App Attest root; Apple's when not set.")
    fxa_base_url: str = Field("https://oauth.accounts.firefox.com/v1", description="FxA's OAuth API.")
    fxa_issuer: str = Field("https://accounts.firefox.com", description="`iss` of FxA's JWT access tokens.")
    fxa_cache_ttl_seconds: int = Field(300, ge=0, le=300, description="How long a verified FxA token is remembered.")
    fxa_cache_secret: Secret = Field(None, description="HMAC key of the FxA cache's keys and values.")
    exchange_limit_per_identity: Limit = Field(60, description="Token exchanges per identity and minute; 0 = no limit.")
    exchange_limit_per_source: Limit = Field(
        600, description="Token exchanges per source and minute, and as many refused ones; 0 = no limit."
    )
    challenge_limit_per_source: Limit = Field(
        600, description="Challenges per source and minute, and as many refused ones; 0 = no limit."
    )
    enroll_limit_per_source: Limit = Field(
        60, description="Enrolments per source and minute, and as many refused ones; 0 = no limit."
    )
    revoke_limit_per_source: Limit = Field(
        600,
        description="Revocations per source and minute, and as many calls with other tokens than ours; 0 = no limit.",
    )
    max_auth_request_size_bytes: int = Field(65536, ge=1024, description="Largest request body of auth.")
    master_key: SecretStr | None = Field(None, description="LiteLLM's master key, to make customers and budgets.")
    litellm_provision_users: bool = Field(
        True, description="Make users customers in LiteLLM; false for a LiteLLM without a database."
    )
    litellm_budget_factor: float = Field(2, ge=1, le=1000, description="LiteLLM's budget of a user, times ours.")
    mlpa_admin_keys: SecretStr | None = Field(
        None,
        description="Admin keys: name:role:sha256hex or name:role:sha256hex:YYYY-MM-DD (its last day, UTC), "
        "comma-separated; role admin or viewer.",
    )
    mlpa_admin_key: AdminSecret = Field(None, description="One admin key in the clear, named `admin`.")
    mlpa_ui_access_key: AdminSecret = Field(None, description="One viewer key in the clear, named `ui`.")
    sign_in_limit_per_source: Limit = Field(
        20,
        description="Wrong admin keys per source and minute, at the console and the user API; 0 = no limit. "
        "A right one always gets in.",
    )
    gateway_url: str = Field("http://127.0.0.1:8080", description="The gateway whose health the console shows.")
    gateway_metrics_urls: CommaSeparated = Field(
        (), description="Metrics pages of the gateways, for the console's refusals; GATEWAY_URL/metrics if not set."
    )

    def needed(self) -> list[str]:
        needed = [*super().needed(), "mlpa_signing_keys_dir", "challenge_secret", "fxa_cache_secret"]
        needed += ["app_development_team", "app_attest_bundle_ids"]
        if self.litellm_provision_users and not self.mlpa_debug:
            needed.append("master_key")
        return needed

    def challenge_secrets(self) -> list[bytes]:
        return secret_parts(self.challenge_secret)


SETTINGS = web.AppKey("settings", AuthSettings)
SERVICE_TYPES = web.AppKey("service_types", ServiceTypes)
