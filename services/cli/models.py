"""``mlpa models``: every model as a running gateway knows it."""

from __future__ import annotations

import asyncio
import json

import click

from services.cli.admin_api import address, ask


@click.command()
@click.option(
    "--gateway-url", default="http://127.0.0.1:8080", show_default=True, help="The ops port, if the gateway has one."
)
def models(gateway_url: str) -> None:
    """Print every model, its price, or why it is refused.

    The gateway knows no admin keys: who reaches its ops port may read this.
    """
    url = address(gateway_url, "/catalogue")
    click.echo(json.dumps(asyncio.run(ask("the gateway", "GET", url)), indent=2))
