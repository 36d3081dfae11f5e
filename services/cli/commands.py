"""The commands of ``mlpa``."""

from __future__ import annotations

import importlib
import sys

import click

from shared.domain.service_types import ConfigurationError

#: The module of each command, by default that of its name. It is imported when the command is run: all of them
#: together take a second.
_MODULES = {
    **dict.fromkeys(("up", "auth", "gateway"), "run"),
    **dict.fromkeys(("check", "smoke", "migrate", "keys", "device", "fxa", "play", "user", "audit", "models")),
    **dict.fromkeys(("app-attest", "virtual-key", "ledger", "prune", "settings", "service-types", "import-settings")),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"services.cli.{_MODULES[cmd_name] or name}"), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlpa", prog_name="mlpa")
def cli() -> None:
    """MLPA: verifies users, and relays their requests to language models under a budget per user."""


def run() -> None:
    """Run what the arguments name: a wrong setting ends in one line that names it."""
    try:
        cli()
    except ConfigurationError as error:
        click.echo(f"mlpa: {error}", err=True)
        sys.exit(2)
