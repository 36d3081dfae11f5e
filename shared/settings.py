"""Settings: one declaration each, read from the environment and from ``.env``.

A field is named as its variable, in lower case. Its description is the sentence that ``mlpa settings`` and the
README show. A secret has no default; ``MLPA_DEBUG`` gives it one for development, and without it a missing one
stops the start with a line that names the variable.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

import psycopg2
from psycopg2.extensions import parse_dsn
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared import proxies, redis
from shared.service_types import ConfigurationError, ServiceTypes, load


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _check_database_url(url: str) -> None:
    """:raises ValueError: libpq can't use it, or reads a part of the password as something else."""
    place = parse_dsn(url)
    ports = place.get("port", "").split(",")
    if not url.startswith(("postgresql://", "postgres://")) or "@" in place.get("host", "") + place.get("dbname", ""):
        raise ValueError("not a URL")
    if not all(port.isdecimal() for port in ports if port):
        raise ValueError("not a port")


def _secret_url(check: Callable[[str], None], forms: str) -> AfterValidator:
    """What is wrong with the URL is not said: libraries quote it, and it holds a password."""

    def checked(value: SecretStr) -> SecretStr:
        try:
            check(value.get_secret_value())
        except (ValueError, psycopg2.Error):
            reason = f"must be a {forms} URL; special characters of a password are percent-encoded"
            raise PydanticCustomError("url", "{reason}", {"reason": reason}) from None
        return value

    return AfterValidator(checked)


DatabaseUrl = Annotated[SecretStr, _secret_url(_check_database_url, "postgresql://")]
RedisUrl = Annotated[SecretStr, _secret_url(redis.check_url, "redis://, rediss://, unix:// or redis+cluster://")]
#: A comma-separated list.
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Limit = Annotated[int, Field(ge=0)]


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    try:
        proxies.parse_networks(value)
    except ValueError:
        raise PydanticCustomError(
            "networks", "must be addresses or networks such as 10.0.0.0/8, comma-separated"
        ) from None
    return value


Networks = Annotated[CommaSeparated, AfterValidator(_networks)]


class Settings(BaseSettings):
    """What both services share."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    #: Settings that production must give, and what development uses instead.
    development: ClassVar[dict[str, str]] = {"service_types": ""}

    host: str = Field("127.0.0.1", description="Address that the service listens on.")
    ops_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Serves /metrics (port + worker index), and auth's /user and /admin, only here.",
    )
    database_url: DatabaseUrl = Field(
        SecretStr("postgresql://litellm:litellm@localhost:5432/app_attest"), description="PostgreSQL."
    )
    database_pool_size: int = Field(10, ge=1, le=200, description="Connections of one process to PostgreSQL.")
    redis_url: RedisUrl = Field(
        SecretStr("redis://localhost:6379/0"),
        description="Redis or Valkey; redis+cluster:// for a Redis Cluster.",
    )
    mlpa_debug: bool = Field(False, description="Development: relaxed defaults. Never in production.")
    mlpa_issuer: str = Field("http://127.0.0.1:8081", description="Auth's base URL, the `iss` of every token.")
    service_types: Path | None = Field(None, description="TOML file of service types and models.")
    litellm_api_base: CommaSeparated = Field(
        ("http://localhost:4000",), description="LiteLLM's base URL, or several, comma-separated."
    )
    trusted_proxies: int = Field(0, ge=0, le=10, description="How many hops of X-Forwarded-For to trust.")
    trusted_proxy_networks: Networks = Field(
        proxies.PRIVATE_NETWORKS,
        description="Peers whose forwarded headers count, when TRUSTED_PROXIES > 0; loopback and private ranges.",
    )
    log_json: bool = Field(False, description="Log lines as JSON.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe level logged.")
    log_user_secret: SecretStr | None = Field(
        None, description="HMAC key of user names in logs; each process makes its own when not set."
    )
    drain_delay_seconds: float = Field(
        0, ge=0, le=600, description="After SIGTERM, how long new requests are still served."
    )
    drain_seconds: float = Field(60, ge=0, le=3600, description="After that, how long running requests may finish.")
    sentry_dsn: SecretStr | None = Field(None, description="Where to report errors; request bodies are never sent.")
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector (OTLP over HTTP) that gets a span of every request."
    )

    @classmethod
    def from_environment(cls, **overrides: Any) -> Self:
        """The settings of this process.

        :raises ConfigurationError: with one line that names the variable.
        """
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            raise ConfigurationError(_first_fault(error)) from None
        return settings.completed()

    @classmethod
    def lenient(cls) -> Self:
        """For commands that need only some of the settings: missing ones are None.

        :raises ConfigurationError: one is malformed.
        """
        try:
            return cls()
        except ValidationError as error:
            raise ConfigurationError(_first_fault(error)) from None

    def completed(self) -> Self:
        """With development's defaults filled in, or refused for what production lacks.

        :raises ConfigurationError:
        """
        missing = [name for name in self.needed() if _is_empty(getattr(self, name))]
        if missing and not self.mlpa_debug:
            raise ConfigurationError(
                f"{missing[0].upper()} is not set; it has no default outside MLPA_DEBUG"
                + (f" (also missing: {', '.join(name.upper() for name in missing[1:])})" if missing[1:] else "")
            )
        update: dict[str, Any] = {}
        for name in missing:
            if value := self.development.get(name):
                update[name] = SecretStr(value) if "Secret" in str(type(self).model_fields[name].annotation) else value
        self._check_issuer()
        return type(self).model_validate({**self.model_dump(), **update}) if update else self

    def needed(self) -> list[str]:
        """Names of the settings that production must give."""
        return ["service_types"]

    def _check_issuer(self) -> None:
        try:
            parts = urlsplit(self.mlpa_issuer)
            _ = parts.port
        except ValueError:
            raise ConfigurationError("MLPA_ISSUER is not a URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError("MLPA_ISSUER must be an http(s) URL without query or fragment")
        if parts.scheme == "http" and not self.mlpa_debug and not _is_loopback(parts.hostname):
            raise ConfigurationError("MLPA_ISSUER must be https, or on loopback, outside MLPA_DEBUG")

    def load_service_types(self) -> ServiceTypes:
        """:raises ConfigurationError:"""
        return load(self.service_types, debug=self.mlpa_debug)


def _is_empty(value: Any) -> bool:
    """Nothing, or a list of nothings."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return text in (None, ()) or (isinstance(text, str) and not text.strip(", "))


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]).upper() if first["loc"] else "settings"
    return f"{name}: {first['msg']}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
