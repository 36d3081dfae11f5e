"""``mlpa check``: tries everything that a service needs, before it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import click

from shared.domain.service_types import ConfigurationError
from shared.service.health import Health
from shared.telemetry import logs


@click.group()
def check() -> None:
    """Try settings, files and dependencies before a start.

    Starts nothing; exit code 1 on a failure.
    """
    logs.configure(form="text", level="CRITICAL")  # what fails is printed


@check.command()
def auth() -> None:
    """Try all that auth needs. Settings, service types and keys; PostgreSQL, Redis, FxA, LiteLLM's admin API."""
    from services.auth.app import prepare
    from services.auth.health import before_start
    from services.auth.settings import AuthSettings

    _report(lambda: before_start(settings := AuthSettings.from_environment(), prepare(settings).key_ring))


@check.command()
def gateway() -> None:
    """Try all that a gateway needs. Settings, service types; PostgreSQL, Redis, LiteLLM, auth's key set."""
    from services.gateway.health import before_start
    from services.gateway.settings import GatewaySettings

    _report(lambda: before_start(GatewaySettings.from_environment()))


def _report(open_: Callable[[], AbstractAsyncContextManager[Health]]) -> None:
    async def run() -> bool:
        async with open_() as health:
            _, answer = await health.readiness(draining=False)
        for name, result in answer["checks"].items():
            click.echo(f"{name}: {result['error'] or 'ok'}")
        return all(result["status"] == "ok" for result in answer["checks"].values())

    try:
        well = asyncio.run(run())
    except ConfigurationError as error:
        click.echo(f"settings: {error}")
        well = False
    if not well:
        raise SystemExit(1)
