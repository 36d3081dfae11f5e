"""``mlpa service-types``: a new table of service types, tried before it is put in place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from services.auth.settings import AuthSettings
from services.auth.users.affected import Affected, affected
from shared.domain import service_types as table_file
from shared.domain.money import nano_to_usd
from shared.domain.service_types import ConfigurationError, ServiceType, ServiceTypes
from shared.errors import DependencyUnavailable
from shared.stores.postgres import Database

_TIMEOUT_SECONDS = 60.0
#: Fields that follow from others.
_DERIVED = {"reserved_models", "pool_members"}


@click.group("service-types")
def service_types() -> None:
    """The table of service types and models."""


@service_types.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def diff(file: Path) -> None:
    """Print whom the table FILE would affect, compared with SERVICE_TYPES. Changes nothing.

    A line for each row and field that differs, and for each changed row its users and those who have spent more in
    this period than its new budget, from DATABASE_URL. Exit code 1 if running processes would refuse the table.
    """
    settings = AuthSettings.lenient()
    before = settings.load_service_types()
    refusal = None
    try:
        after = table_file.load(file, debug=settings.mlpa_debug, after=before)
    except ConfigurationError as error:
        refusal = str(error)
        try:
            after = table_file.load(file, debug=settings.mlpa_debug)
        except ConfigurationError:
            raise click.ClickException(refusal) from None
    changed = [row for name, row in after.by_name.items() if name in before.by_name and row != before.by_name[name]]
    try:
        found = asyncio.run(_affected(settings, changed, after)) if changed else {}
    except DependencyUnavailable as error:
        raise click.ClickException(f"PostgreSQL: {error.reason}") from error
    for line in _lines(before, after, found):
        click.echo(line)
    if refusal is not None:
        raise click.ClickException(f"running processes would refuse it: {refusal}")


async def _affected(settings: AuthSettings, rows: list[ServiceType], after: ServiceTypes) -> dict[str, Affected]:
    url = settings.database_url.get_secret_value()
    async with Database.connect(url, max_size=1, timeout=_TIMEOUT_SECONDS) as database:
        return {row.name: await affected(database, row, after.by_name, time.time()) for row in rows}


def _lines(before: ServiceTypes, after: ServiceTypes, found: Mapping[str, Affected]) -> Iterator[str]:
    kinds: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...] = (
        ("service type", before.by_name, after.by_name),
        ("model", before.models, after.models),
    )
    for kind, old, new in kinds:
        for name in old.keys() - new.keys():
            yield f"{kind} {name}: removed"
        for name, row in new.items():
            if name not in old:
                yield f"{kind} {name}: added"
            elif row != old[name]:
                yield from (f"{kind} {name}: {change}" for change in _changes(old[name], row))
                if kind == "service type":
                    yield f"{kind} {name}: {found[name].users} users, {found[name].over} over its budget in this period"


def _changes(old: Any, new: Any) -> Iterator[str]:
    for field in msgspec.structs.fields(old):
        one, other = getattr(old, field.name), getattr(new, field.name)
        if one != other and field.name not in _DERIVED:
            name = field.name.replace("_nano", "_usd")
            yield f"{name}: {_shown(field.name, one)} -> {_shown(field.name, other)}"


def _shown(field: str, value: Any) -> str:
    if field.endswith("_nano"):
        return f"{nano_to_usd(value):.9f}".rstrip("0").rstrip(".")
    if field == "enforce_until":
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}" if value else "none"
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
