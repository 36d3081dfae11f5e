"""``mlpa check``: tests everything that a service needs, before it starts."""

from __future__ import annotations

import asyncio
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

    try:
        settings = AuthSettings.from_environment()
        _report(before_start(settings, prepare(settings).key_ring))
    except ConfigurationError as error:
        _refuse(error)


@check.command()
def gateway() -> None:
    """Try all that a gateway needs. Settings, service types; PostgreSQL, Redis, LiteLLM, auth's key set."""
    from services.gateway.health import before_start
    from services.gateway.settings import GatewaySettings

    try:
        _report(before_start(GatewaySettings.from_environment()))
    except ConfigurationError as error:
        _refuse(error)


def _refuse(error: ConfigurationError) -> None:
    click.echo(f"settings: {error}")
    raise SystemExit(1)


def _report(opened: AbstractAsyncContextManager[Health]) -> None:
    async def run() -> bool:
        async with opened as health:
            _, answer = await health.readiness(draining=False)
        for name, result in answer["checks"].items():
            click.echo(f"{name}: {result['error'] or 'ok'}")
        return all(result["status"] == "ok" for result in answer["checks"].values())

    if not asyncio.run(run()):
        raise SystemExit(1)
