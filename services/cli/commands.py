"""The commands of ``mlpa``."""

from __future__ import annotations

import importlib
import sys

import click

from shared.domain.service_types import ConfigurationError

#: The module of each command, imported when the command is run: all of them together take a second.
_MODULES = {
    "up": "run",
    "auth": "run",
    "gateway": "run",
    "check": "check",
    "smoke": "smoke",
    "migrate": "migrate",
    "keys": "keys",
    "device": "device",
    "fxa": "fxa",
    "play": "play",
    "user": "user",
    "audit": "audit",
    "models": "models",
    "app-attest": "app_attest",
    "virtual-key": "virtual_key",
    "ledger": "ledger",
    "prune": "prune",
    "settings": "settings",
    "service-types": "service_types",
    "import-settings": "import_settings",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f"services.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlpa", prog_name="mlpa")
def cli() -> None:
    """MLPA: verifies users, and relays their chat completions under a budget per user."""


def run() -> None:
    """Run what the arguments name: a wrong setting ends in one line that names it."""
    try:
        cli()
    except ConfigurationError as error:
        click.echo(f"mlpa: {error}", err=True)
        sys.exit(2)
