"""Settings: one declaration each, read from the environment and from an env file.

A field is named as its variable, in lower case. Its description is the sentence that ``mlpa settings`` and the
README show. A secret has no default; ``MLPA_DEBUG`` gives it one for development, and without it a missing one
stops the start with a line that names the variable. ``shared/service/start_rules.py`` has further rules.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from shared.domain.service_types import ConfigurationError, ServiceTypes, load
from shared.service import proxies, start_rules
from shared.service.start_rules import Rule
from shared.service.strength import Secret, SecretList
from shared.stores import postgres_places, redis
from shared.telemetry import logs


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _secret_url(check: Callable[[str], None]) -> AfterValidator:
    """A URL with a password. ``check`` raises ValueError with a message that quotes none of it."""

    def checked(value: SecretStr) -> SecretStr:
        try:
            check(value.get_secret_value())
        except ValueError as error:
            raise PydanticCustomError("url", "{reason}", {"reason": str(error)}) from None
        return value

    return AfterValidator(checked)


DatabaseUrl = Annotated[SecretStr, _secret_url(postgres_places.check)]
RedisUrl = Annotated[SecretStr, _secret_url(redis.check_url)]
#: A comma-separated list.
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
#: How development's value of a setting is made, by a word of its type.
_FORMS: dict[str, Callable[[str], Any]] = {"Secret": SecretStr, "Path": Path, "tuple": _split}
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
    """The settings that both services share."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    #: Settings that production must give, and what development uses instead.
    development: ClassVar[dict[str, str]] = {"service_types": "", "exchange_key": "development-exchange-key"}
    #: Rules that refuse a start.
    rules: ClassVar[tuple[Rule, ...]] = (
        start_rules.issuer,
        start_rules.debug_is_local,
        start_rules.strong_secrets,
        start_rules.litellm_urls,
    )

    host: str = Field("127.0.0.1", description="Address that the service listens on.")
    ops_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port that alone serves /metrics (plus a worker's index), and what ADMIN_PORT would if not set.",
    )
    database_url: DatabaseUrl = Field(
        SecretStr("postgresql://litellm:litellm@localhost:5432/app_attest"), description="PostgreSQL."
    )
    database_pool_size: int = Field(10, ge=1, le=200, description="Connections of one process to PostgreSQL.")
    redis_url: RedisUrl = Field(
        SecretStr("redis://localhost:6379/0"), description="Redis or Valkey; redis+cluster:// for a Redis Cluster."
    )
    mlpa_debug: bool = Field(
        False, description="Development: relaxed defaults, public secrets. Needs HOST and MLPA_ISSUER on loopback."
    )
    mlpa_env_file: Path | None = Field(
        None, description="File of more settings; `.env` of the working directory if not set, none if empty."
    )
    mlpa_issuer: str = Field("http://127.0.0.1:8081", description="Auth's base URL, the `iss` of every token.")
    service_types: Path | None = Field(
        None, description="TOML file of service types and models, read again on SIGHUP and when it has changed."
    )
    litellm_api_base: CommaSeparated = Field(
        ("http://localhost:4000",), description="LiteLLM's base URL, or several, comma-separated."
    )
    trusted_proxies: int = Field(0, ge=0, le=10, description="How many hops of X-Forwarded-For to trust.")
    trusted_proxy_networks: Networks = Field(
        proxies.PRIVATE_NETWORKS,
        description="Peers whose forwarded headers count, when TRUSTED_PROXIES > 0; loopback and private ranges.",
    )
    log_format: logs.Format = Field(
        "text", description="Format of log lines: `text`, `json`, `mozlog` (Mozilla's), `gcp` (Google's Cloud Logging)."
    )
    log_json: bool = Field(False, description="The same as `LOG_FORMAT=json`, where that is not set.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe level logged.")
    log_user_secret: Secret = Field(
        None, description="HMAC key of user names in logs; each process makes its own when not set."
    )
    firefox_clients: bool = Field(
        False, description="Serve shipped Firefox for desktop, iOS and Android, which send their credential each time."
    )
    exchange_key: SecretList = Field(
        None,
        description="Secret that makes the gateway known to auth, needed with FIREFOX_CLIENTS; a comma-separated list: "
        "the gateway sends the first, auth accepts all.",
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
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Without a file, none is asked for each field."""
        has_file = getattr(dotenv_settings, "env_file", None) is not None
        return (init_settings, env_settings, dotenv_settings) if has_file else (init_settings, env_settings)

    @classmethod
    def from_environment(cls, **overrides: Any) -> Self:
        """The settings of this process.

        :raises ConfigurationError: with one line that names the variable.
        """
        return cls.lenient(**overrides).completed()

    @classmethod
    def lenient(cls, **overrides: Any) -> Self:
        """For commands that need only some of the settings: missing ones are None.

        :raises ConfigurationError: one is malformed.
        """
        path = overrides["_env_file"] if "_env_file" in overrides else env_file()
        try:
            return cls(**{**overrides, "_env_file": path})
        except ValidationError as error:
            raise ConfigurationError(_first_fault(error)) from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"{path}: not UTF-8") from None
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from None

    def completed(self) -> Self:
        """The settings with development's defaults filled in.

        :raises ConfigurationError: production lacks a setting, or a rule refuses one.
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
                kind = str(type(self).model_fields[name].annotation)
                update[name] = next((form for word, form in _FORMS.items() if word in kind), str)(value)
        start_rules.refuse(self, self.rules)
        return self.model_copy(update=update)

    def needed(self) -> list[str]:
        """Names of the settings that production must give."""
        return ["service_types", *(["exchange_key"] if self.firefox_clients else [])]

    def exchange_keys(self) -> list[bytes]:
        """The secrets by which auth knows gateways, the first being the one that gateways send; none if not used."""
        return secret_parts(self.exchange_key) if self.firefox_clients else []

    @property
    def form_of_logs(self) -> logs.Format:
        return "json" if self.log_json and "log_format" not in self.model_fields_set else self.log_format

    def load_service_types(self) -> ServiceTypes:
        """:raises ConfigurationError: the file is not usable."""
        return load(self.service_types, debug=self.mlpa_debug)


def secret_parts(secret: SecretStr | None) -> list[bytes]:
    """The parts of a ``SecretList``."""
    text = secret.get_secret_value() if secret is not None else ""
    return [part.strip().encode() for part in text.split(",") if part.strip()]


def _is_empty(value: Any) -> bool:
    """Whether a value is missing, or a list of empty parts."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return text in (None, ()) or (isinstance(text, str) and not text.strip(", "))


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]).upper() if first["loc"] else "settings"
    return f"{name}: {first['msg']}"


def env_file() -> Path | None:
    """The file of further settings; the environment takes precedence over it.

    Unless it is named explicitly, it is the ``.env`` of whatever the working directory is, and counts only if nobody
    but its owner can have written it.

    :raises ConfigurationError: it can't be read or trusted.
    """
    named = os.environ.get("MLPA_ENV_FILE")
    path = Path(".env") if named is None else Path(named.strip())
    if named is not None and not named.strip():
        return None
    try:
        found = path.stat()
        if named is None:
            for place in (found, path.parent.stat()):
                if place.st_mode & stat.S_IWOTH or place.st_uid not in (0, os.geteuid()):
                    raise ConfigurationError(
                        f"{path}: others can write it or its folder; to read it anyway, name it in MLPA_ENV_FILE"
                    )
    except FileNotFoundError:
        if named is None:
            return None
        raise ConfigurationError(f"MLPA_ENV_FILE: {path}: No such file or directory") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    return path


def given_names() -> set[str]:
    """The names of all variables of the environment and of the env file.

    :raises ConfigurationError: the file can't be read or trusted.
    """
    path = env_file()
    return {*os.environ, *(dotenv_values(path) if path else ())}
