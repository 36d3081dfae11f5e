"""The settings of auth, beside those that both services share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar

from aiohttp import web
from pydantic import AfterValidator, Field, SecretStr
from pydantic_core import PydanticCustomError

from shared.domain.service_types import DURATIONS, ServiceTypes
from shared.domain.tokens import LONGEST_LIFE, LONGEST_PLAY_LIFE
from shared.service import start_rules
from shared.service.settings import CommaSeparated, DatabaseUrl, Limit, Settings, secret_parts
from shared.service.start_rules import Rule
from shared.service.strength import AdminSecret, Secret, SecretList


def _certificates(value: tuple[str, ...]) -> tuple[str, ...]:
    digests = tuple(part.rstrip("=") for part in value)
    if not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise PydanticCustomError("certificates", "must be base64url of SHA-256 digests, comma-separated")
    return digests


#: SHA-256 in base64url, whose last character has two unused bits.
_DIGEST = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
PlayCertificates = Annotated[CommaSeparated, AfterValidator(_certificates)]


def _kept_days(value: int) -> int:
    # Budgets are rebuilt from what was spent in the longest period
    if 0 < value <= max(DURATIONS.values()) // 86_400:
        raise PydanticCustomError("kept_days", "must be 0 or at least 31")
    return value


KeptDays = Annotated[int, Field(ge=0, le=36500), AfterValidator(_kept_days)]


class AuthSettings(Settings):
    development: ClassVar[dict[str, str]] = {
        **Settings.development,
        "mlpa_signing_keys_dir": ".mlpa/keys",
        "challenge_secret": "development-challenge-secret",
        "fxa_cache_secret": "development-fxa-cache-secret",
        "erasure_secret": "development-erasure-secret",
        "app_development_team": "DEVELOPMNT",
        "app_attest_bundle_ids": "org.mozilla.ios.Fennec",
    }

    rules: ClassVar[tuple[Rule, ...]] = (
        *Settings.rules,
        start_rules.fxa_is_one_stack,
        start_rules.play_is_https,
        start_rules.receipts_are_https,
        start_rules.operators_have_their_port,
    )

    auth_port: int = Field(8081, ge=0, le=65535, description="Port of auth.")
    admin_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port that alone serves auth's console and API of operators, of all workers; OPS_PORT if not set.",
    )
    mlpa_signing_keys_dir: Path | None = Field(None, description="Folder of the ES256 keys that sign tokens (PEM).")
    mlpa_access_token_ttl_seconds: int = Field(300, ge=10, le=LONGEST_LIFE, description="Life of an access token.")
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
    apple_receipt_key: Path | None = Field(
        None, description="The team's DeviceCheck key (.p8), with which `mlpa device receipts` renews receipts."
    )
    apple_receipt_key_id: str = Field("", description="Its id.")
    apple_receipt_base_url: str = Field(
        "", description="Apple's App Attest server; when not set, that of production or of development keys."
    )
    apple_receipt_root_ca: Path | None = Field(None, description="PEM of the root of receipts; Apple's when not set.")
    device_unused_days: int = Field(
        0,
        ge=0,
        le=36500,
        description="Days without use after which an App Attest key is refused, and pruned; 0 = never.",
    )
    ledger_kept_days: KeptDays = Field(
        0, description="Days after which `mlpa prune` drops ledger rows, at least 31; 0 = never."
    )
    audit_log_kept_days: int = Field(
        0, ge=0, le=36500, description="Days after which `mlpa prune` deletes audit entries; 0 = never."
    )
    fxa_base_url: str = Field("https://oauth.accounts.firefox.com/v1", description="FxA's OAuth API.")
    fxa_issuer: str = Field("https://accounts.firefox.com", description="`iss` of FxA's JWT access tokens and events.")
    fxa_cache_ttl_seconds: int = Field(300, ge=0, le=300, description="How long a verified FxA token is remembered.")
    fxa_cache_secret: Secret = Field(None, description="HMAC key of the FxA cache's keys and values.")
    erasure_secret: SecretList = Field(
        None,
        description="HMAC key of what is kept of erased identities; a comma-separated list: the first makes digests, "
        "those of all are recognised.",
    )
    fxa_client_ids: CommaSeparated = Field(
        (), description="Relying parties whose events FxA sends to `/fxa/events`, comma-separated; none if not set."
    )
    fxa_events_limit_per_source: Limit = Field(
        600, description="Refused deliveries of FxA's events per source and minute; 0 = no limit. Good ones have none."
    )
    play_packages: CommaSeparated = Field(
        (), description="Android apps whose installs get in by Play Integrity, comma-separated; none if not set."
    )
    play_certificates: PlayCertificates = Field(
        (), description="Base64url SHA-256 of the certificates that sign those apps, comma-separated."
    )
    play_credentials: Path | None = Field(
        None,
        description="Key of a Google service account, or configuration of a workload identity (JSON); "
        "the environment's credentials when not set.",
    )
    play_base_url: str = Field("https://playintegrity.googleapis.com", description="Google's Play Integrity API.")
    play_token_ttl_seconds: int = Field(
        LONGEST_PLAY_LIFE, ge=10, le=LONGEST_PLAY_LIFE, description="Life of an install's access token."
    )
    play_max_age_seconds: int = Field(600, ge=1, le=86400, description="Greatest age of an integrity token.")
    play_limit_per_source: Limit = Field(
        60, description="Integrity tokens per source and minute that Google is asked about; 0 = no limit."
    )
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
    litellm_database_url: DatabaseUrl | None = Field(
        None, description="LiteLLM's own PostgreSQL, for erasures to delete its spend rows: its API deletes none."
    )
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
    gateway_catalogue_url: str = Field(
        "", description="A gateway's `/catalogue`, for the console's models; GATEWAY_URL/catalogue if not set."
    )

    def needed(self) -> list[str]:
        needed = [*super().needed(), "mlpa_signing_keys_dir", "challenge_secret", "fxa_cache_secret", "erasure_secret"]
        needed += ["app_development_team", "app_attest_bundle_ids"]
        if self.litellm_provision_users and not self.mlpa_debug:
            needed.append("master_key")
        if self.apple_receipt_key:
            needed.append("apple_receipt_key_id")
        if self.play_packages:
            needed.append("play_certificates")
        return needed

    @property
    def longest_token_ttl(self) -> int:
        """The longest life of an access token, in seconds."""
        play = self.play_token_ttl_seconds if self.play_packages else 0
        return max(self.mlpa_access_token_ttl_seconds, play)

    def erasure_secrets(self) -> list[bytes]:
        return secret_parts(self.erasure_secret)

    def challenge_secrets(self) -> list[bytes]:
        return secret_parts(self.challenge_secret)


SETTINGS = web.AppKey("settings", AuthSettings)
SERVICE_TYPES = web.AppKey("service_types", ServiceTypes)
