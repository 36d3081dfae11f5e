"""Service types with their budgets and rates, and facts about models: rows of one TOML file."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace

from shared.domain.identity import MAX_USER_ID, Credential, longest_service_type
from shared.domain.money import usd_to_nano

DURATIONS = {"1h": 3600, "1d": 86400, "7d": 604800, "30d": 2592000}

_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
#: A name at LiteLLM, which stands in a path there.
_Tool = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
#: Apple's number for how an app came onto a device: four bytes.
_Category = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
#: How much of Google's device integrity an Android install needs.
PlayLevel = Literal["basic", "device", "strong"]
MAX_MODEL_NAME = 256
#: Least completion tokens of a grant, unless a row says otherwise. With less, a reasoning model can't answer after
#: its reasoning.
LEAST_COMPLETION, REASONING_LEAST_COMPLETION = 16, 1024
#: The longest time, in seconds, for which a row's budget and rates can be set not to refuse anybody.
LONGEST_UNENFORCED = 30 * 86_400


class ConfigurationError(Exception):
    """A setting or file that the service cannot start with; the message says which, and why."""


class ServiceTypeFields(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The fields of a row that are the same in its file, in a process and in the API of the console."""

    name: _Name
    rpm: _Count
    tpm: _Count
    models: tuple[str, ...]
    credentials: tuple[Credential, ...]
    purposes: tuple[_Name, ...] = ()
    fxa_scopes: tuple[str, ...] = ()
    fxa_client_ids: tuple[str, ...] = ()
    bundle_ids: tuple[str, ...] | None = None
    max_streams: _Count = 0
    max_users: _Count = 0
    purposes_required: bool = False
    client_key: _Name | None = None
    exclusive_models: tuple[str, ...] = ()
    pool: _Name | None = None
    aliases: tuple[_Name, ...] = ()
    search_tool: _Tool | None = None
    play_integrity: PlayLevel = "device"
    validation_categories: tuple[_Category, ...] = ()
    max_risk_metric: _Count = 0
    enabled: bool = True

    def common(self) -> dict[str, Any]:
        """These fields' values."""
        return {name: getattr(self, name) for name in ServiceTypeFields.__struct_fields__}


class _ServiceTypeRow(ServiceTypeFields, forbid_unknown_fields=True, frozen=True, kw_only=True):
    max_budget: str
    duration: Literal["1h", "1d", "7d", "30d"]
    total_budget: str = "0"
    temperature: str | None = None
    top_p: str | None = None
    search_cost: str | None = None
    enforce: bool = True
    enforce_until: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class _ModelFields(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    min_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=10**6)] | None = None
    prompt_bytes_per_token: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    max_tokens_per_image: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = 8192
    reasoning: bool = False
    enabled: bool = True


class _ModelRow(_ModelFields, forbid_unknown_fields=True, frozen=True):
    name: str
    input_cost_per_token: str | None = None
    output_cost_per_token: str | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    service_type: Annotated[list[_ServiceTypeRow], msgspec.Meta(min_length=1)]
    model: list[_ModelRow] = []


class _Fault(ValueError):
    """A fault of a row, with the number of its table in the file, from 0, and the field."""

    def __init__(self, message: str, number: int, field: str = "name", *, kind: str = "service_type") -> None:
        self.kind, self.number, self.field = kind, number, field
        super().__init__(message)


def _at(number: int, row: ServiceTypeFields, field: str, text: str) -> _Fault:
    return _Fault(f"service type {row.name!r}: {field}{text}", number, field)


class ServiceType(ServiceTypeFields, frozen=True, kw_only=True):
    """One row: the accepted credentials, and the limits of its users. 0 means no limit, except for the budget.

    ``enforce_until`` is Unix time: when the budget and the rates refuse again whatever ``enforce`` says.
    """

    max_budget_nano: int
    duration_seconds: int
    total_budget_nano: int
    temperature: float | None
    top_p: float | None
    search_cost_nano: int
    enforce: bool
    enforce_until: float
    #: Models that rows, this one or others, name as exclusive.
    reserved_models: frozenset[str] = frozenset()
    #: The names of the pool's rows, in order.
    pool_members: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)  # quick, since each request looks something up by its row

    def enforces(self, now: float) -> bool:
        """Whether the budget and the rates refuse requests; otherwise they only count."""
        return self.enforce or now >= self.enforce_until

    def allows_model(self, model: str) -> bool:
        if model in self.models or model in self.exclusive_models:
            return True
        return model not in self.reserved_models and any(fnmatchcase(model, pattern) for pattern in self.models)

    def purpose(self, given: str | None) -> str:
        """The metrics label of a ``purpose`` header: a value of the row, ``other``, or ``none``."""
        if not given:
            return "none"
        return given if given in self.purposes else "other"


class ModelRow(_ModelFields, frozen=True):
    """Facts about a model that LiteLLM lacks or should not decide. ``min_completion_tokens`` None: by its kind."""

    name: str
    input_cost_per_token: Decimal | None
    output_cost_per_token: Decimal | None

    def least_completion(self, *, reasoning: bool) -> int:
        """The least completion tokens of a grant, for a model that reasons or doesn't."""
        return self.min_completion_tokens or (REASONING_LEAST_COMPLETION if reasoning else LEAST_COMPLETION)


class ServiceTypes:
    """The rows that hold at the moment, by name. A process has one, shared by all who need a row.

    ``by_name`` and ``models`` are views of the newest table: keep the view, and look a row up at each use. What is
    derived from the rows is derived again ``on_change``.
    """

    def __init__(self, rows: Mapping[str, ServiceType], models: Mapping[str, ModelRow]) -> None:
        self._rows, self._models = dict(rows), dict(models)
        self.by_name: Mapping[str, ServiceType] = MappingProxyType(self._rows)
        self.models: Mapping[str, ModelRow] = MappingProxyType(self._models)
        self._listeners: list[Callable[[], None]] = []
        #: The client keys that the process has, which a row of another table may name; None: any.
        self.client_keys: frozenset[str] | None = None

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have a function called whenever another table has been taken."""
        self._listeners.append(listener)

    def take(self, table: ServiceTypes) -> bool:
        """Take the rows of a table that was loaded ``after`` this one; whether they are others than before."""
        if (self._rows, self._models) == (table._rows, table._models):
            return False
        self._rows.clear()
        self._rows.update(table._rows)
        self._models.clear()
        self._models.update(table._models)
        for listener in self._listeners:
            listener()
        return True

    def unenforced(self, now: float) -> list[ServiceType]:
        """The rows whose budget and rates refuse nobody."""
        return [row for row in self._rows.values() if not row.enforces(now)]


def load(path: Path | None, *, debug: bool, after: ServiceTypes | None = None) -> ServiceTypes:
    """The rows of a file; of the development table in the package when ``path`` is None.

    :param debug: otherwise a row that accepts FxA accounts must name scopes, and relying parties or ``["*"]``.
    :param after: the table that a running process has. It can't lose a row, nor change the length of a period.
    :raises ConfigurationError: the file is not usable; the message names file, row, field and line.
    """
    return parse(read(path), path, debug=debug, after=after)


def read(path: Path | None) -> bytes:
    """:raises ConfigurationError: the file can't be read."""
    try:
        return path.read_bytes() if path else files("shared.domain").joinpath("development.toml").read_bytes()
    except OSError as error:
        raise ConfigurationError(f"SERVICE_TYPES: {path}: {error.strerror}") from error


def parse(raw: bytes, path: Path | None, *, debug: bool, after: ServiceTypes | None = None) -> ServiceTypes:
    """The rows of a file's content, as ``load`` returns them.

    :raises ConfigurationError: the content is not usable.
    """
    shown = str(path) if path else "the development table"
    try:
        file = msgspec.toml.decode(raw, type=_File)
        rows = [_service_type(number, row) for number, row in enumerate(file.service_type)]
        models = [_model(number, model) for number, model in enumerate(file.model)]
        for kind, names in (("service_type", [row.name for row in rows]), ("model", [model.name for model in models])):
            for number, name in enumerate(names):
                if name in names[:number]:
                    raise _Fault(f"{kind.replace('_', ' ')} {name!r} is repeated", number, kind=kind)
        _check_pools(rows)
        for number, row in enumerate(rows):
            _check(number, row, debug=debug)
            if after is not None:
                _check_change(number, row, after)
    except ValueError as error:
        raise ConfigurationError(f"SERVICE_TYPES: {shown}: {error}{_line(raw, error)}") from error
    table = ServiceTypes({row.name: row for row in _related(rows)}, {model.name: model for model in models})
    if after is not None and (lost := sorted(after.by_name.keys() - table.by_name.keys())):
        raise ConfigurationError(f"SERVICE_TYPES: {shown}: service type {lost[0]!r} is missing: that needs a restart")
    return table


def _check(number: int, row: ServiceType, *, debug: bool) -> None:
    """:raises _Fault: the row can't be used."""
    kinds = [kind for kind in row.credentials if len(row.name) > longest_service_type(kind)]
    if kinds:
        most, kind = min((longest_service_type(kind), kind) for kind in kinds)
        length = f"{len(row.name)} characters; a row that takes {kind} has at most {most}"
        raise _at(number, row, "name", f": has {length}, so that a user id has at most {MAX_USER_ID}")
    if not row.enforce:
        if not row.enforce_until:
            raise _at(number, row, "enforce", ": false needs enforce_until")
        if row.enforce_until > time.time() + LONGEST_UNENFORCED:
            raise _at(number, row, "enforce_until", ": over 30 days ahead")
    if not debug and Credential.FXA in row.credentials:
        if not row.fxa_client_ids:
            raise _at(number, row, "fxa_client_ids", ' is empty; write ["*"] for any relying party')
        if not row.fxa_scopes:
            raise _at(number, row, "fxa_scopes", " is empty; a token made for another service would be accepted")
    if row.purposes_required and not row.purposes:
        raise _at(number, row, "purposes_required", " without purposes")


def _check_change(number: int, row: ServiceType, after: ServiceTypes) -> None:
    """:raises _Fault: a process that has the table ``after`` can't take the row."""
    before = after.by_name.get(row.name)
    if before is not None and row.duration_seconds != before.duration_seconds:
        raise _at(number, row, "duration", ": another one needs a restart")
    if row.client_key is not None and after.client_keys is not None and row.client_key not in after.client_keys:
        raise _at(number, row, "client_key", f": CLIENT_KEYS has no key named {row.client_key!r}")


def _check_pools(rows: Sequence[ServiceType]) -> None:
    """:raises _Fault: the rows of a pool differ in its size."""
    first: dict[str, ServiceType] = {}
    for number, row in enumerate(rows):
        if row.pool is not None and row.max_users != (other := first.setdefault(row.pool, row)).max_users:
            raise _Fault(f"pool {row.pool!r}: {other.name!r} and {row.name!r} differ in max_users", number, "max_users")


def _related(rows: Sequence[ServiceType]) -> Iterator[ServiceType]:
    """The rows, each with the models that all of them reserve and the members of its pool."""
    reserved = frozenset(model for row in rows for model in row.exclusive_models)
    for row in rows:
        members = sorted(other.name for other in rows if other.pool == row.pool) if row.pool else ()
        yield replace(row, reserved_models=reserved, pool_members=tuple(members))


#: The place of a fault in msgspec's messages.
_PLACE = re.compile(r"\$\.(?P<kind>service_type|model)\[(?P<number>\d+)\](?:\.(?P<field>\w+))?")
_NAMED = re.compile(r"field `(\w+)`")


def _line(raw: bytes, error: Exception) -> str:
    """The line of a fault in the file, as text to append; empty if it is unknown, or in the message already."""
    lines = raw.decode(errors="replace").splitlines()
    if isinstance(error, _Fault):
        kind, number, field = error.kind, error.number, error.field
    elif place := _PLACE.search(str(error)):
        named = _NAMED.search(str(error))
        kind, number = place["kind"], int(place["number"])
        field = place["field"] or (named[1] if named else "name")
    else:  # a syntax error has its line in its own words, but for one
        return f" (line {len(lines)})" if "at end of document" in str(error) else ""
    found, seen = 0, -1
    for line, text in enumerate(lines, 1):
        if re.match(rf"\s*\[\[\s*{kind}\s*\]\]", text):
            seen += 1
            found = line if seen == number else found
        elif re.match(r"\s*\[\[", text):
            seen += seen == number  # the tables of another kind may stand between
        elif seen == number and re.match(rf"\s*{field}\s*=", text):
            found = line
    return f" (line {found})" if found else ""


def _service_type(number: int, row: _ServiceTypeRow) -> ServiceType:
    if (row.search_tool is None) != (row.search_cost is None):
        given, other = sorted(("search_tool", "search_cost"), key=lambda field: getattr(row, field) is None)
        raise _at(number, row, given, f" needs {other}")
    return ServiceType(
        **row.common(),
        max_budget_nano=_money(number, row, "max_budget"),
        total_budget_nano=_money(number, row, "total_budget"),
        search_cost_nano=_money(number, row, "search_cost"),
        temperature=_sampling(number, row, "temperature", 2),
        top_p=_sampling(number, row, "top_p", 1),
        duration_seconds=DURATIONS[row.duration],
        enforce=row.enforce,
        enforce_until=row.enforce_until.timestamp() if row.enforce_until else 0.0,
    )


def _money(number: int, row: _ServiceTypeRow, field: str) -> int:
    text: str | None = getattr(row, field)
    try:
        amount = 0 if text is None else usd_to_nano(text)
    except ValueError as error:
        raise _at(number, row, field, f": {error}") from error
    if amount >= 2**52:
        raise _at(number, row, field, ": more than can be counted exactly (4.5 million USD)")
    return amount


def _sampling(number: int, row: _ServiceTypeRow, field: str, most: int) -> float | None:
    text: str | None = getattr(row, field)
    if text is not None and not (re.fullmatch(r"[0-9](\.[0-9]{1,6})?", text) and float(text) <= most):
        raise _at(number, row, field, f": not a number from 0 to {most}")
    return None if text is None else float(text)


def is_model_name(name: str) -> bool:
    """Whether a model may have this name: 1 to 256 printable characters, no spaces."""
    return 0 < len(name) <= MAX_MODEL_NAME and name.isprintable() and " " not in name


def _model(number: int, row: _ModelRow) -> ModelRow:
    if not is_model_name(row.name):
        raise _Fault(
            f"model {row.name!r}: not a name of 1 to {MAX_MODEL_NAME} printable characters without spaces",
            number,
            kind="model",
        )
    prices = [_price(number, row, field) for field in ("input_cost_per_token", "output_cost_per_token")]
    return ModelRow(row.name, *prices, **{field: getattr(row, field) for field in _ModelFields.__struct_fields__})


def _price(number: int, row: _ModelRow, field: str) -> Decimal | None:
    text: str | None = getattr(row, field)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,30})?([eE]-?[0-9]{1,2})?", text):
        raise _Fault(f"model {row.name!r}: {field}: not a price", number, field, kind="model")
    return Decimal(text)
