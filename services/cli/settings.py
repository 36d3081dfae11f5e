"""``mlpa settings``: every setting, from the declarations themselves."""

from __future__ import annotations

import re
from typing import Any

import click
from pydantic import SecretStr

from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from shared.service.settings import Settings


@click.command()
@click.option("--markdown", is_flag=True, help="A table for a document, without current values.")
def settings(markdown: bool) -> None:
    """Print every setting and its current value. Secrets are masked."""
    if markdown:
        click.echo("| name | default | for | |\n|---|---|---|---|")
    for name, (service, field, value) in sorted(_all().items()):
        default = _text(_public(field.default))
        if markdown:
            click.echo(f"| `{name}` | {f'`{default}`' if default else ''} | {service} | {field.description} |")
        else:
            click.echo(f"{name}  ({service})\n    {field.description}")
            click.echo(f"    default {default or '-'}   now {_now(value) or '-'}")


def _all() -> dict[str, tuple[str, Any, Any]]:
    found: dict[str, tuple[str, Any, Any]] = {}
    for service, kind in (("auth", AuthSettings), ("gateway", GatewaySettings)):
        current = kind.lenient()
        for name, field in kind.model_fields.items():
            where = "both" if name in Settings.model_fields else service
            found[name.upper()] = (where, field, getattr(current, name))
    return found


def _public(default: Any) -> Any:
    """A default isn't secret."""
    return default.get_secret_value() if isinstance(default, SecretStr) else default


#: The part before the host of a URL. An unescaped "/" or "@" in a password doesn't end it.
_USER = re.compile(r"(?<=://)\S*@")


def _now(value: Any) -> str:
    """A current value as text, without secrets and without the user and password of a URL."""
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, tuple):
        return ",".join(map(_now, value))
    return _USER.sub("********@", _text(value))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
