"""Service types with their budgets and rates, and facts about models: rows of one TOML file."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from shared.domain.identity import MAX_USER_ID, Credential, longest_service_type
from shared.domain.money import usd_to_nano

DURATIONS = {"1h": 3600, "1d": 86400, "7d": 604800, "30d": 2592000}

_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
MAX_MODEL_NAME = 256
#: Least completion tokens of a grant, unless a row says otherwise. With less, a reasoning model can't answer after
#: its reasoning.
LEAST_COMPLETION, REASONING_LEAST_COMPLETION = 16, 1024
#: Parameters of requests that a row may set, with the largest value of each.
_SAMPLING = {"temperature": 2, "top_p": 1}


class ConfigurationError(Exception):
    """A setting or file that the service cannot start with; the message says which, and why."""


class _ServiceTypeRow(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: _Name
    max_budget: str
    duration: Literal["1h", "1d", "7d", "30d"]
    rpm: _Count
    tpm: _Count
    models: list[str]
    credentials: list[Credential]
    purposes: list[_Name] = []
    fxa_scopes: list[str] = []
    fxa_client_ids: list[str] = []
    bundle_ids: list[str] | None = None
    max_streams: _Count = 0
    max_users: _Count = 0
    total_budget: str = "0"
    temperature: str | None = None
    top_p: str | None = None
    purposes_required: bool = False
    client_key: _Name | None = None
    exclusive_models: list[str] = []
    pool: _Name | None = None
    aliases: list[_Name] = []


class _ModelRow(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    input_cost_per_token: str | None = None
    output_cost_per_token: str | None = None
    min_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=10**6)] | None = None
    prompt_bytes_per_token: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    max_tokens_per_image: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = 8192
    reasoning: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    service_type: Annotated[list[_ServiceTypeRow], msgspec.Meta(min_length=1)]
    model: list[_ModelRow] = []


@dataclass(frozen=True, slots=True)
class ServiceType:
    """One row: the accepted credentials, and the limits of its users. 0 means no limit, except for the budget."""

    name: str
    max_budget_nano: int
    duration_seconds: int
    rpm: int
    tpm: int
    models: tuple[str, ...]
    purposes: tuple[str, ...]
    credentials: tuple[Credential, ...]
    fxa_scopes: tuple[str, ...]
    fxa_client_ids: tuple[str, ...]
    bundle_ids: tuple[str, ...] | None
    max_streams: int
    max_users: int
    total_budget_nano: int
    temperature: float | None = None
    top_p: float | None = None
    purposes_required: bool = False
    client_key: str | None = None
    exclusive_models: tuple[str, ...] = ()
    pool: str | None = None
    aliases: tuple[str, ...] = ()
    #: Models that rows, this one or others, name as exclusive.
    reserved_models: frozenset[str] = frozenset()
    #: The names of the pool's rows, in order.
    pool_members: tuple[str, ...] = ()

    def allows_model(self, model: str) -> bool:
        if model in self.models or model in self.exclusive_models:
            return True
        return model not in self.reserved_models and any(fnmatchcase(model, pattern) for pattern in self.models)

    def purpose(self, given: str | None) -> str:
        """The metrics label of a ``purpose`` header: a value of the row, ``other``, or ``none``."""
        if not given:
            return "none"
        return given if given in self.purposes else "other"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """Facts about a model that LiteLLM lacks or should not decide. ``min_completion_tokens`` None: by its kind."""

    name: str
    input_cost_per_token: Decimal | None
    output_cost_per_token: Decimal | None
    min_completion_tokens: int | None = None
    prompt_bytes_per_token: int = 1
    max_tokens_per_image: int = 8192
    reasoning: bool = False

    def least_completion(self, *, reasoning: bool) -> int:
        """The least completion tokens of a grant, for a model that reasons or doesn't."""
        return self.min_completion_tokens or (REASONING_LEAST_COMPLETION if reasoning else LEAST_COMPLETION)


@dataclass(frozen=True, slots=True)
class ServiceTypes:
    rows: dict[str, ServiceType]
    models: dict[str, ModelRow]

    def purposes(self) -> tuple[str, ...]:
        """Every value that the label ``purpose`` can take."""
        named = {purpose for row in self.rows.values() for purpose in row.purposes}
        return ("none", "other", *sorted(named))


def load(path: Path | None, *, debug: bool) -> ServiceTypes:
    """The rows of a file; of the development table in the package when ``path`` is None.

    :param debug: otherwise a row that accepts FxA accounts must name scopes, and relying parties or ``["*"]``.
    :raises ConfigurationError: the file is not usable; the message names file, row and field.
    """
    shown = str(path) if path else "the development table"
    try:
        raw = path.read_bytes() if path else files("shared.domain").joinpath("development.toml").read_bytes()
    except OSError as error:
        raise ConfigurationError(f"SERVICE_TYPES: {shown}: {error.strerror}") from error
    try:
        file = msgspec.toml.decode(raw, type=_File)
        rows = [_service_type(row) for row in file.service_type]
        models = [_model(row) for row in file.model]
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigurationError(f"SERVICE_TYPES: {shown}: {error}") from error
    for kind, names in (
        ("service type", [row.name for row in rows]),
        ("model", [model.name for model in models]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(f"SERVICE_TYPES: {shown}: {kind} {twice[0]!r} is repeated")
    for row in rows:
        kinds = [kind for kind in row.credentials if len(row.name) > longest_service_type(kind)]
        if kinds:
            most, kind = min((longest_service_type(kind), kind) for kind in kinds)
            raise ConfigurationError(
                f"SERVICE_TYPES: {shown}: service type {row.name!r}: name: has {len(row.name)} characters; "
                f"a row that takes {kind} has at most {most}, so that a user id has at most {MAX_USER_ID}"
            )
    if not debug:
        for row in rows:
            if Credential.FXA in row.credentials and not row.fxa_client_ids:
                raise ConfigurationError(
                    f"SERVICE_TYPES: {shown}: service type {row.name!r}: fxa_client_ids is empty; "
                    'write ["*"] for any relying party'
                )
            if Credential.FXA in row.credentials and not row.fxa_scopes:
                raise ConfigurationError(
                    f"SERVICE_TYPES: {shown}: service type {row.name!r}: fxa_scopes is empty; "
                    "a token made for another service would be accepted"
                )
    for row in rows:
        if row.purposes_required and not row.purposes:
            raise ConfigurationError(
                f"SERVICE_TYPES: {shown}: service type {row.name!r}: purposes_required without purposes"
            )
    reserved = frozenset(model for row in rows for model in row.exclusive_models)
    pools: dict[str, list[ServiceType]] = {}
    for row in rows:
        if row.pool is not None:
            pools.setdefault(row.pool, []).append(row)
    for pool, members in pools.items():
        if len({row.max_users for row in members}) > 1:
            shared_by = " and ".join(repr(row.name) for row in members)
            raise ConfigurationError(f"SERVICE_TYPES: {shown}: pool {pool!r}: {shared_by} differ in max_users")
    return ServiceTypes(
        {
            row.name: replace(
                row,
                reserved_models=reserved,
                pool_members=tuple(sorted(member.name for member in pools[row.pool])) if row.pool else (),
            )
            for row in rows
        },
        {model.name: model for model in models},
    )


def _service_type(row: _ServiceTypeRow) -> ServiceType:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value := getattr(row, name), list) else value
        for name in row.__struct_fields__
        if name not in ("max_budget", "total_budget", "duration", *_SAMPLING)
    }
    for field in ("max_budget", "total_budget"):
        try:
            values[f"{field}_nano"] = usd_to_nano(getattr(row, field))
        except ValueError as error:
            raise ValueError(f"service type {row.name!r}: {field}: {error}") from error
        if values[f"{field}_nano"] >= 2**52:
            raise ValueError(f"service type {row.name!r}: {field}: more than can be counted exactly (4.5 million USD)")
    for field, most in _SAMPLING.items():
        text: str | None = getattr(row, field)
        if text is not None and not (re.fullmatch(r"\d(\.\d{1,6})?", text) and float(text) <= most):
            raise ValueError(f"service type {row.name!r}: {field}: not a number from 0 to {most}")
        values[field] = None if text is None else float(text)
    return ServiceType(duration_seconds=DURATIONS[row.duration], **values)


def is_model_name(name: str) -> bool:
    """Whether a model may have this name: 1 to 256 printable characters, no spaces."""
    return 0 < len(name) <= MAX_MODEL_NAME and name.isprintable() and " " not in name


def _model(row: _ModelRow) -> ModelRow:
    if not is_model_name(row.name):
        raise ValueError(f"model {row.name!r}: not a name of 1 to {MAX_MODEL_NAME} printable characters without spaces")
    return ModelRow(
        row.name,
        _price(row, "input_cost_per_token"),
        _price(row, "output_cost_per_token"),
        row.min_completion_tokens,
        row.prompt_bytes_per_token,
        row.max_tokens_per_image,
        row.reasoning,
    )


def _price(row: _ModelRow, field: str) -> Decimal | None:
    text: str | None = getattr(row, field)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,6}(\.\d{1,30})?([eE]-?\d{1,2})?", text):
        raise ValueError(f"model {row.name!r}: {field}: not a price")
    return Decimal(text)
