"""Rules that refuse a start: values not allowed outside ``MLPA_DEBUG``, and conditions of ``MLPA_DEBUG`` itself.

A rule takes the settings and yields faults, one line each, beginning with the name of the variable.
``Settings.rules`` lists those of both services, ``AuthSettings.rules`` adds its own; ``refuse`` raises the first fault.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from shared.domain.service_types import ConfigurationError
from shared.service.strength import Strength

Rule: TypeAlias = Callable[[Any], Iterator[str]]

#: Hosts of Mozilla's FxA stacks: OAuth API, auth server, and the content server, which is the issuer
#: (mozilla/PyFxA, fxa/constants.py; China's: mozilla-mobile/firefox-ios, FirefoxAccountConfiguration.swift).
_FXA_STACKS = {
    "production": {"accounts.firefox.com", "oauth.accounts.firefox.com", "api.accounts.firefox.com"},
    "stage": {"accounts.stage.mozaws.net", "oauth.stage.mozaws.net", "api-accounts.stage.mozaws.net"},
    "China": {"accounts.firefox.com.cn", "oauth.firefox.com.cn", "api-accounts.firefox.com.cn"},
}


def refuse(settings: Any, rules: Iterable[Rule]) -> None:
    """:raises ConfigurationError: with the first fault."""
    for rule in rules:
        for fault in rule(settings):
            raise ConfigurationError(fault)


def is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def issuer(settings: Any) -> Iterator[str]:
    """The issuer is in every token, is compared byte by byte, and is the base of the metadata's address."""
    parts = _split(settings.mlpa_issuer)
    if parts is None:
        yield "MLPA_ISSUER is not a URL"
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        yield "MLPA_ISSUER must be an http(s) URL"
    elif "@" in parts.netloc or parts.path or _has_more(settings.mlpa_issuer):
        yield "MLPA_ISSUER must be scheme, host and port alone: no user, path (not even /), query or fragment"
    elif settings.mlpa_debug:
        return
    elif parts.scheme == "http" and not is_loopback(parts.hostname):
        yield "MLPA_ISSUER must be https, or on loopback, outside MLPA_DEBUG"
    elif "mlpa_issuer" not in settings.model_fields_set and not is_loopback(settings.host):
        yield "MLPA_ISSUER is not set; its default is for a HOST on loopback"


def debug_is_local(settings: Any) -> Iterator[str]:
    """``MLPA_DEBUG`` needs loopback, since development's secrets are public."""
    if settings.mlpa_debug:
        parts = _split(settings.mlpa_issuer)
        if not is_loopback(settings.host):
            yield "MLPA_DEBUG needs a HOST on loopback: its secrets are public"
        if parts is None or not is_loopback(parts.hostname):
            yield "MLPA_DEBUG needs an MLPA_ISSUER on loopback: its secrets are public"


def strong_secrets(settings: Any) -> Iterator[str]:
    """Every setting that declares a ``Strength`` has it."""
    if settings.mlpa_debug:
        return
    for name, field in type(settings).model_fields.items():
        secret: SecretStr | None = getattr(settings, name)
        for strength in field.metadata:
            if isinstance(strength, Strength) and secret is not None:
                fault = strength.fault(secret.get_secret_value())
                if fault is not None:
                    yield f"{name.upper()} {fault}"


def fxa_is_one_stack(settings: Any) -> Iterator[str]:
    """FxA is reached over https and is one stack: its answers decide who a user is."""
    if settings.mlpa_debug:
        return
    base, issuer = _split(settings.fxa_base_url), _split(settings.fxa_issuer)
    for name, parts in (("FXA_BASE_URL", base), ("FXA_ISSUER", issuer)):
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            yield f"{name} must be an http(s) URL"
    if base is None or issuer is None:
        return
    if "@" in base.netloc or _has_more(settings.fxa_base_url):
        yield "FXA_BASE_URL must be without user, query and fragment"
    if is_loopback(base.hostname):
        return
    if base.scheme != "https":
        yield "FXA_BASE_URL must be https, or on loopback, outside MLPA_DEBUG"
    stacks = _stack(base), _stack(issuer)
    if stacks[0] != stacks[1] and not is_loopback(issuer.hostname):
        yield f"FXA_BASE_URL belongs to {stacks[0]}, FXA_ISSUER to {stacks[1]}: they must be of one FxA stack"


def auth_url(settings: Any) -> Iterator[str]:
    """Auth gets the credentials of clients there, and the key by which it knows the gateway."""
    if settings.auth_url is not None:
        yield from _base_url("AUTH_URL", settings.auth_url)


def litellm_urls(settings: Any) -> Iterator[str]:
    """A password in a URL would appear in the log lines and metrics that name the instance."""
    for url in settings.litellm_api_base:
        yield from _base_url("LITELLM_API_BASE", url)


def play_is_https(settings: Any) -> Iterator[str]:
    """Google is reached over https: its answers decide which installs are genuine."""
    yield from _https("PLAY_BASE_URL", settings.play_base_url, debug=settings.mlpa_debug)


def receipts_are_https(settings: Any) -> Iterator[str]:
    """Apple is reached over https: it gets a token of ours."""
    if settings.apple_receipt_base_url:
        yield from _https("APPLE_RECEIPT_BASE_URL", settings.apple_receipt_base_url, debug=settings.mlpa_debug)


def operators_have_their_port(settings: Any) -> Iterator[str]:
    """Workers share ports, so the system would not refuse one that two apps of auth listen on."""
    for name in ("auth_port", "ops_port"):
        if settings.admin_port is not None and settings.admin_port == getattr(settings, name):
            yield f"ADMIN_PORT must be another port than {name.upper()}"


def _https(name: str, url: str, *, debug: bool) -> Iterator[str]:
    yield from _base_url(name, url)
    parts = _split(url)
    if parts is not None and parts.scheme == "http" and not debug and not is_loopback(parts.hostname):
        yield f"{name} must be https, or on loopback, outside MLPA_DEBUG"


def _base_url(name: str, url: str) -> Iterator[str]:
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        yield f"{name} must be an http(s) URL"
    elif "@" in parts.netloc or _has_more(url):
        yield f"{name} must be without user, query and fragment"


def _stack(parts: SplitResult) -> str:
    host = (parts.hostname or "").rstrip(".")
    return next((name for name, hosts in _FXA_STACKS.items() if host in hosts), "another host")


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _has_more(url: str) -> bool:
    """A query or a fragment, an empty one included, or what no URL may have."""
    return any(character in url for character in "?#\\") or any(character.isspace() for character in url)
