"""``mlpa settings``: every setting, from the declarations themselves."""

from __future__ import annotations

from typing import Any

import click
from pydantic import SecretStr

from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from shared.settings import Settings


@click.command()
@click.option("--markdown", is_flag=True, help="A table for a document, without current values.")
def settings(markdown: bool) -> None:
    """Every setting: name, default, current value (secrets masked), sentence."""
    if markdown:
        click.echo("| name | default | for | |\n|---|---|---|---|")
    for name, (service, field, value) in sorted(_all().items()):
        default = _shown(_public(field.default))
        if markdown:
            click.echo(f"| `{name}` | {f'`{default}`' if default else ''} | {service} | {field.description} |")
        else:
            click.echo(f"{name}  ({service})\n    {field.description}")
            click.echo(f"    default {default or '-'}   now {_shown(value) or '-'}")


def _all() -> dict[str, tuple[str, Any, Any]]:
    found: dict[str, tuple[str, Any, Any]] = {}
    for service, kind in (("auth", AuthSettings), ("gateway", GatewaySettings)):
        current = kind.lenient()
        for name, field in kind.model_fields.items():
            where = "both" if name in Settings.model_fields else service
            found[name.upper()] = (where, field, getattr(current, name))
    return found


def _public(default: Any) -> Any:
    """A default is no secret."""
    return default.get_secret_value() if isinstance(default, SecretStr) else default


def _shown(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
