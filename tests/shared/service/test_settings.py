"""Settings: the required ones, and the messages about wrong ones."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from shared.domain.service_types import ConfigurationError
from shared.service.strength import DEVELOPMENT, Strength

COMPLETE: dict[str, Any] = {
    "_env_file": None,
    "service_types": "types.toml",
    "mlpa_issuer": "https://auth.example.org",
    "mlpa_signing_keys_dir": "/keys",
    "challenge_secret": "x" * 32,
    "fxa_cache_secret": "y" * 32,
    "erasure_secret": "z" * 32,
    "app_development_team": "TEAM",
    "app_attest_bundle_ids": "a,b",
    "master_key": "sk",
    "mlpa_virtual_key": "sk",
}
NEEDED = {
    AuthSettings: [
        "service_types",
        "mlpa_signing_keys_dir",
        "challenge_secret",
        "fxa_cache_secret",
        "erasure_secret",
        "app_development_team",
        "app_attest_bundle_ids",
        "master_key",
    ],
    GatewaySettings: ["service_types", "mlpa_virtual_key"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NEEDED.items() for name in names])
def test_production_does_not_start_without_a_secret_and_names_it(kind: Any, name: str) -> None:
    kind.from_environment(**COMPLETE)
    with pytest.raises(ConfigurationError, match=name.upper()):
        kind.from_environment(**{key: value for key, value in COMPLETE.items() if key != name})


@pytest.mark.parametrize("kind", [AuthSettings, GatewaySettings])
def test_development_starts_with_nothing(kind: Any) -> None:
    kind.from_environment(_env_file=None, mlpa_debug=True)


@pytest.mark.parametrize("issuer", ["http://auth.example.org", "ftp://x", "https://", "https://x/?y", "x"])
def test_an_issuer_must_be_https_or_loopback(issuer: str) -> None:
    with pytest.raises(ConfigurationError, match="MLPA_ISSUER"):
        AuthSettings.from_environment(**{**COMPLETE, "mlpa_issuer": issuer})


def test_a_wrong_value_names_its_variable_but_does_not_show_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        GatewaySettings.from_environment(**{**COMPLETE, "port": "secret-value"})
    assert str(caught.value).startswith("PORT: ")
    assert "secret-value" not in str(caught.value)


def test_lists_are_comma_separated() -> None:
    settings = AuthSettings.from_environment(**COMPLETE)
    assert settings.app_attest_bundle_ids == ("a", "b")


@pytest.mark.parametrize("kind", [AuthSettings, GatewaySettings])
@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("redis_url", "redis://:can/ary@h:6379/0"),
        ("redis_url", "redis://:12/canary@h:6379/0"),
        ("redis_url", "redis://user:12/canary@h:6379/0"),
        ("redis_url", "redis://:can#ary@h"),
        ("redis_url", "redis://[canary"),
        ("redis_url", "canary:6379"),
        ("database_url", "postgresql://user:can/ary@h:5432/db"),
        ("database_url", "postgresql://user:12/canary@h:5432/db"),
        ("database_url", "postgresql://user:canary@ary@h/db"),
        ("database_url", "postgresql://user:canary%zz@h/db"),
        ("database_url", "postgresql://user:canary@h:port/db"),
        ("database_url", "mysql://user:canary@h/db"),
        ("database_url", "canary"),
    ],
)
def test_a_url_that_can_not_be_used_is_named_and_nothing_of_it_shown(kind: Any, name: str, url: str) -> None:
    for settings in (kind.from_environment, lambda **given: kind(**given)):
        with pytest.raises((ConfigurationError, ValidationError)) as caught:
            settings(**{**COMPLETE, name: url})
        assert name in str(caught.value).lower()
        assert not re.search("canary|can/ary|can#ary", str(caught.value))


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("redis_url", "rediss://user:p%2Fss@h:6379/0"),
        ("redis_url", "redis://[::1]:7"),
        ("redis_url", "unix:///run/redis.sock?db=1"),
        ("redis_url", "redis+cluster://h:6379"),
        ("database_url", "postgresql://user:p%2Fss@h/db?sslmode=require"),
        ("database_url", "postgresql://user:p#ss@[::1]:5432/db"),
        ("database_url", "postgresql:///db?host=/run/postgresql"),
        ("database_url", "postgresql://h1:1,h2:2/db"),
    ],
)
def test_the_usual_urls_are_taken(name: str, url: str) -> None:
    AuthSettings.from_environment(**{**COMPLETE, name: url})


@pytest.mark.parametrize("name", ["challenge_secret", "fxa_cache_secret", "erasure_secret"])
@pytest.mark.parametrize("value", [",", " ", " , ,"])
def test_a_list_of_nothings_is_no_secret(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name.upper()} is not set"):
        AuthSettings.from_environment(**{**COMPLETE, name: value})


@pytest.mark.parametrize("issuer", ["https://[::", "https://x:99999", "ftp://x", "x"])
def test_an_issuer_that_is_no_url_is_named(issuer: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^MLPA_ISSUER "):
        AuthSettings.from_environment(**{**COMPLETE, "mlpa_issuer": issuer})


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "proxy.example.org", "10.0.0.0/8,x"])
def test_a_network_that_is_none_stops_the_start_and_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^TRUSTED_PROXY_NETWORKS: must be"):
        GatewaySettings.from_environment(**{**COMPLETE, "trusted_proxy_networks": text})


def test_networks_are_addresses_too_and_replace_the_private_ranges() -> None:
    settings = GatewaySettings.from_environment(**{**COMPLETE, "trusted_proxy_networks": "192.0.2.7, 35.191.0.0/16"})
    assert settings.trusted_proxy_networks == ("192.0.2.7", "35.191.0.0/16")


@pytest.mark.parametrize("kind", [AuthSettings, GatewaySettings])
def test_every_secret_of_our_own_declares_how_strong_it_must_be(kind: Any) -> None:
    """A secret that comes from elsewhere is in the list here; a new one of ours declares ``Secret``."""
    elsewhere = {
        "master_key",
        "mlpa_virtual_key",
        "sentry_dsn",
        "database_url",
        "litellm_database_url",
        "redis_url",
        "mlpa_admin_keys",
        "client_keys",
    }
    for name, field in kind.model_fields.items():
        if "Secret" in str(field.annotation) and name not in elsewhere:
            assert any(isinstance(each, Strength) for each in field.metadata), name


def test_the_secrets_of_development_can_not_be_mistaken() -> None:
    for name, value in AuthSettings.development.items():
        if "Secret" in str(AuthSettings.model_fields[name].annotation):
            assert value.startswith(DEVELOPMENT)


SHARED_KEY = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("kind", [AuthSettings, GatewaySettings])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "EXCHANGE_KEY is not set"),
        ({"exchange_key": " , "}, "EXCHANGE_KEY is not set"),
        ({"exchange_key": SHARED_KEY[1:]}, "EXCHANGE_KEY must have at least 32 characters"),
        ({"exchange_key": f"{SHARED_KEY},short"}, "EXCHANGE_KEY must have at least 32 characters in each part"),
    ],
)
def test_shipped_clients_are_not_served_without_a_strong_key(kind: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        kind.from_environment(**{**COMPLETE, "firefox_clients": True, **given})


@pytest.mark.parametrize("kind", [AuthSettings, GatewaySettings])
def test_the_keys_are_those_of_the_list_and_none_with_the_setting_off(kind: Any) -> None:
    given = {**COMPLETE, "exchange_key": f"{SHARED_KEY}, {SHARED_KEY[::-1]}"}
    on = kind.from_environment(**{**given, "firefox_clients": True})
    assert on.exchange_keys() == [SHARED_KEY.encode(), SHARED_KEY[::-1].encode()]
    assert kind.from_environment(**given).exchange_keys() == []


@pytest.mark.parametrize("kind", [AuthSettings, GatewaySettings])
@pytest.mark.parametrize(
    "url", ["http://user:hunter2@litellm", "litellm:4000", "http://a,http://u@b", "http://a/?key=b"]
)
def test_litellms_address_has_no_password_in_it(kind: Any, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^LITELLM_API_BASE must be") as refused:
        kind.from_environment(**{**COMPLETE, "litellm_api_base": url})
    assert "hunter2" not in str(refused.value)
    assert kind.from_environment(**{**COMPLETE, "litellm_api_base": "http://a:1,https://b/llm"}).litellm_api_base[1]


@pytest.mark.parametrize(
    "url", ["auth:8081", "ftp://auth", "http://", "https://u@auth", "http://auth/?a=b", "http://a#"]
)
def test_where_credentials_are_exchanged_is_a_plain_url(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^AUTH_URL must be"):
        GatewaySettings.from_environment(**{**COMPLETE, "auth_url": url})
    assert GatewaySettings.from_environment(**{**COMPLETE, "auth_url": "http://auth:8081"}).auth_url
