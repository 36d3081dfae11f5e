"""The commands of ``mlpa``."""

from __future__ import annotations

import sys

import click

from services.cli.app_attest import app_attest
from services.cli.audit import audit
from services.cli.check import check
from services.cli.device import device
from services.cli.fxa import fxa
from services.cli.import_settings import import_settings
from services.cli.keys import keys
from services.cli.ledger import ledger
from services.cli.models import models
from services.cli.play import play
from services.cli.run import auth, gateway, migrate, up
from services.cli.service_types import service_types
from services.cli.settings import settings
from services.cli.smoke import smoke
from services.cli.user import user
from services.cli.virtual_key import virtual_key
from shared.domain.service_types import ConfigurationError
from shared.service.ops import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="mlpa")
def cli() -> None:
    """MLPA: verifies users, and relays their chat completions under a budget per user."""


for command in (
    up,
    auth,
    gateway,
    check,
    smoke,
    migrate,
    keys,
    device,
    fxa,
    play,
    user,
    audit,
    models,
    app_attest,
    virtual_key,
    ledger,
    settings,
    service_types,
    import_settings,
):
    cli.add_command(command)


def run() -> None:
    """Run what the arguments name: a wrong setting ends in one line that names it."""
    try:
        cli()
    except ConfigurationError as error:
        click.echo(f"mlpa: {error}", err=True)
        sys.exit(2)
