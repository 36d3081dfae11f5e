"""``mlpa import-settings``: the service types of a single-process MLPA, from its ``.env``.

What that server has: Firefox-AI/MLPA, ``src/mlpa/core/config.py`` (budgets, purposes and models of service types) and
``src/mlpa/core/auth/`` (credentials), at its version 1.0.28.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from dotenv import dotenv_values

from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from shared.domain.identity import Credential
from shared.domain.money import usd_to_nano
from shared.domain.service_types import DURATIONS, ConfigurationError, parse

_PREFIX = "USER_FEATURE_BUDGET_"
_FIELDS = ("BUDGET_ID", "MAX_BUDGET", "RPM_LIMIT", "TPM_LIMIT", "BUDGET_DURATION")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

_AI = ("chat", "title-generation", "convo-starters-sidebar", "smart-form-fill", "aitab", "auto-tab-grouping")
#: The relying party that Firefox for desktop is at FxA.
_DESKTOP = "5882386c6d801776"
_POOL = "signed-in"
#: The name of the key that ``-dev`` types need.
_CLIENT_KEY = "dev"


@dataclass(frozen=True)
class _Known:
    """A service type in the code of the single-process MLPA: its defaults, and fields that no setting has."""

    max_budget: str = "0.1"
    rpm: str = "10"
    tpm: str = "2000"
    duration: str = "1d"
    credentials: tuple[str, ...] = ("fxa",)
    more: Mapping[str, Any] = field(default_factory=dict)


def _only(model: str) -> dict[str, Any]:
    return {"models": [model], "exclusive_models": [model]}


_IOS = ("app_attest", "app_attest_request")
#: The price is that of LiteLLM's list for up to 25 results (``exa_ai/search`` in BerriAI/litellm
#: model_prices_and_context_window.json).
_SEARCH = {**_only("exa-search"), "search_tool": "exa-search", "search_cost": "0.005"}
_TYPES = {
    "ai": _Known(rpm="40", more={"purposes": _AI}),
    "memories": _Known(more={"purposes": ("memory-generation",)}),
    "s2s": _Known(rpm="40", credentials=_IOS),
    "s2s-android": _Known(rpm="40", credentials=("play",), more={"aliases": ("s2s",)}),
    "search": _Known("0.01", more=_SEARCH),
    "answer": _Known(credentials=("fxa", *_IOS), more=_only("exa")),
    "sw-answer": _Known(more=_only("exa")),
    "liner-answer": _Known(credentials=("fxa", *_IOS), more=_only("liner")),
    "telemetry": _Known(more={"purposes": ("chat",)}),
    "agent": _Known(duration="7d", more={"purposes": ("monitor", "research")}),
    "agent-search": _Known(duration="7d", more={"purposes": ("research",), **_SEARCH}),
    "ai-dev": _Known("1.0", "200", "10000", more={"purposes": _AI}),
    "memories-dev": _Known("1.0", "50", "5000", more={"purposes": ("memory-generation",)}),
    "mochi-dev": _Known("1.0", "200", "10000", more={"purposes": _AI}),
    "search-dev": _Known("1.0", "200", "10000", more=_SEARCH),
}
#: Settings of that server which need another form here, or none, and why.
_OTHERS = {
    **dict.fromkeys(("DB_USERNAME", "DB_PASSWORD", "DB_HOST", "DB_PORT", "APP_ATTEST_DB_NAME"), "DATABASE_URL has it"),
    "LITELLM_DB_NAME": "LiteLLM's own tables are not read here",
    "ALLOWED_PACKAGE_NAMES": "PLAY_PACKAGES has them",
    "MLPA_ACCESS_TOKEN_SECRET": "not needed: access tokens have signatures, see mlpa keys",
    **dict.fromkeys(("CLIENT_ID", "CLIENT_SECRET"), "not needed: FxA's tokens are verified without"),
    "LOGURU_LEVEL": "LOG_LEVEL is its name here",
    "MASTER_KEY": "it is LiteLLM's alone here; for operators make keys in MLPA_ADMIN_KEYS",
}


@click.command("import-settings")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--defaults", is_flag=True, help="Also the service types that the file does not mention.")
def import_settings(file: Path, defaults: bool) -> None:
    """Make a SERVICE_TYPES file of an old .env.

    FILE is that of a single-process MLPA; stderr has what could not be translated.
    """
    settings = {name.upper(): value or "" for name, value in dotenv_values(file, interpolate=False).items()}
    importing = _Import(settings)
    text = importing.table(defaults=defaults)
    for line in (*importing.notes, *importing.others()):
        click.echo(line, err=True)
    try:
        parse(text.encode(), Path("imported"), debug=False)
    except ConfigurationError as error:
        raise click.ClickException(f"no usable table: {error}") from None
    click.echo(text, nl=False)


class _Import:
    """One file: its settings, what was used of them, and what could not be translated."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._used: set[str] = set()
        self.notes: list[str] = []

    def table(self, *, defaults: bool) -> str:
        names = self._types()
        missing = [name for name in _TYPES if name not in names]
        if defaults:
            names += missing
        elif missing:
            self.notes.append(
                f"not in the file, but served by its defaults: {', '.join(missing)} (--defaults adds them)"
            )
        capped = self._capped()
        rows = [row for name in names if (row := self._row(name, capped)) is not None]
        return "\n".join(f"[[service_type]]\n{_toml(row)}" for row in rows)

    def others(self) -> Iterator[str]:
        """A line for each setting that was not translated and isn't one of MLPA's."""
        ours = {name.upper() for kind in (AuthSettings, GatewaySettings) for name in kind.model_fields}
        for name in sorted(self._settings.keys() - self._used):
            if why := _OTHERS.get(name):
                yield f"{name}: {why}"
            elif name not in ours:
                yield f"{name}: not translated"

    def _get(self, name: str, default: str = "") -> str:
        self._used.add(name)
        return self._settings.get(name, "").strip() or default

    def _flag(self, name: str) -> bool:
        return self._get(name).lower() in ("true", "1", "yes", "on", "t", "y")

    def _types(self) -> list[str]:
        found: dict[str, None] = {}
        for name in self._settings:
            if name.startswith(_PREFIX):
                kind = next((kind for kind in _FIELDS if name.endswith(f"_{kind}")), None)
                if kind is not None:
                    found[name[len(_PREFIX) : -len(kind) - 1].lower().replace("_", "-")] = None
        return list(found)

    def _capped(self) -> dict[str, Any]:
        """The fields of the rows that share a capacity, by their names."""
        enforced = self._flag("MLPA_ENFORCE_SIGNIN_CAP")
        most = self._get("MLPA_MAX_SIGNED_IN_USERS", "1000000")
        types = self._get("MLPA_CAPPED_SERVICE_TYPES", '["ai", "memories"]')
        if not enforced:
            return {}
        try:
            names = json.loads(types) if types.startswith("[") else [part.strip() for part in types.split(",")]
            return {str(name): {"pool": _POOL, "max_users": int(most)} for name in names}
        except ValueError:
            self.notes.append(
                "MLPA_CAPPED_SERVICE_TYPES or MLPA_MAX_SIGNED_IN_USERS: not understood; no capacity is set"
            )
            return {}

    def _row(self, name: str, capped: Mapping[str, Any]) -> dict[str, Any] | None:
        known = _TYPES.get(name)
        label = f"{_PREFIX}{name.upper().replace('-', '_')}"
        standard = known or _Known(max_budget="", rpm="", tpm="", duration="")
        given = {
            "max_budget": self._get(f"{label}_MAX_BUDGET", standard.max_budget),
            "duration": self._get(f"{label}_BUDGET_DURATION", standard.duration),
            "rpm": self._get(f"{label}_RPM_LIMIT", standard.rpm),
            "tpm": self._get(f"{label}_TPM_LIMIT", standard.tpm),
        }
        budget = self._get(f"{label}_BUDGET_ID", f"end-user-budget-{name}")
        if budget != f"end-user-budget-{name}":
            self.notes.append(f"{label}_BUDGET_ID: not translated; LiteLLM's budgets are named mlpa:<service type>")
        lacking = [field for field, value in given.items() if not value]
        if lacking:
            self.notes.append(f"{label}: no row, since {', '.join(lacking)} is missing")
            return None
        try:
            usd_to_nano(given["max_budget"])
            duration = _duration(given["duration"])
            limits = {field: _limit(given[field]) for field in ("rpm", "tpm")}
        except ValueError as error:
            self.notes.append(f"{label}: no row: {error}")
            return None
        kinds = [kind for kind in standard.credentials if kind in set(Credential)]
        if not kinds:
            self.notes.append(f"{label}: no row: no credential of {', '.join(standard.credentials)} is known here")
            return None
        if known is None:
            self.notes.append(f"{label}: another service type; its credentials, models and purposes are a guess")
        row = {"name": name, "max_budget": given["max_budget"], "duration": duration, **limits, "models": ["*"]}
        row |= {"credentials": kinds, **standard.more, **capped.get(name, {})}
        if "fxa" in kinds:
            row |= {"fxa_scopes": ["profile:uid"], "fxa_client_ids": [_DESKTOP]}
        if "purposes" in row and self._flag("MLPA_REQUIRE_PURPOSE_HEADER"):
            row["purposes_required"] = True
        if name.endswith("-dev"):
            row["client_key"] = _CLIENT_KEY
            self._note_client_key()
        return row

    def _note_client_key(self) -> None:
        secret = self._get("MLPA_EXPERIMENTATION_AUTHORIZATION_TOKEN")
        digest = hashlib.sha256(secret.encode()).hexdigest() if secret else "<sha256 of the key>"
        line = f"set for the gateway: CLIENT_KEYS={_CLIENT_KEY}:{digest}"
        if line not in self.notes:
            self.notes.append(line)


def _duration(text: str) -> str:
    """:raises ValueError: there is no such period here."""
    found = re.fullmatch(r"(\d{1,6})\s*([smhdw])", text.lower())
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    for name, length in DURATIONS.items():
        if length == seconds:
            return name
    raise ValueError(f"the duration {text!r} is none of {', '.join(DURATIONS)}")


def _limit(text: str) -> int:
    """:raises ValueError: not a limit; 0 would mean none here, and nobody there."""
    if not re.fullmatch(r"[1-9][0-9]{0,11}", text):
        raise ValueError(f"the limit {text!r} is not a whole number above 0")
    return int(text)


def _toml(row: Mapping[str, Any]) -> str:
    """A row's fields; JSON's strings, numbers, booleans and lists are TOML's."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in row.items())
