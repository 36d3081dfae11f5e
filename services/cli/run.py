"""``mlpa auth``, ``mlpa gateway``: one service in the foreground; and ``mlpa up``."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import click
import uvloop
from aiohttp import web

from services.cli import workers
from services.cli.main import TERMINATED
from shared.service.app import Apps
from shared.service.misspelt import misspelt
from shared.service.serve import Site, serve
from shared.service.service_types_file import SERVICE_TYPES_FILE
from shared.service.settings import Settings, given_names
from shared.telemetry import logs
from shared.telemetry.reports import report_errors

_log = logs.logger("start")

_WORKERS = click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes on one port."
)


@click.command()
@_WORKERS
def auth(workers: int) -> None:
    """Run auth, configured by the environment and .env."""
    from services.auth.app import build_app
    from services.auth.settings import AuthSettings

    settings = AuthSettings.from_environment()
    _run("auth", settings, settings.auth_port, lambda: build_app(settings), workers, admin_port=settings.admin_port)


@click.command()
@_WORKERS
def gateway(workers: int) -> None:
    """Run a gateway, configured by the environment and .env."""
    from services.gateway.app import build_app
    from services.gateway.settings import GatewaySettings

    settings = GatewaySettings.from_environment()
    _run("gateway", settings, settings.port, lambda: build_app(settings), workers)


@click.command()
@click.option("--demo/--no-demo", default=True, show_default=True, help="Show a device and an account chatting.")
@click.option("--port-base", type=click.IntRange(1024, 65000), help="First of the ports; free ones replace taken ones.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".mlpa"),
    show_default=True,
    help="Folder of databases, logs, keys; kept between runs.",
)
def up(demo: bool, port_base: int | None, data: Path) -> None:
    """Run the whole system on this machine, and show it.

    It stays up until Ctrl-C.
    """
    from services.cli.up import up as run_up

    sys.exit(asyncio.run(run_up(demo=demo, port_base=port_base, data=data)))


def _run(
    name: str, settings: Settings, port: int, build: Callable[[], Apps], count: int, *, admin_port: int | None = None
) -> None:
    logs.configure(form=settings.form_of_logs, level=settings.log_level)
    if not workers.is_worker():
        _warn(settings)
    if count > 1:
        sys.exit(workers.run(name, count))
    index = workers.index()
    if settings.sentry_dsn is not None:
        report_errors(settings.sentry_dsn.get_secret_value(), name)
    apps = build()
    apps.main.on_startup.append(_spare_the_long_lived)  # after what opens with the app
    sites = [Site(apps.main, port, apps.make_site)]
    if apps.ops is not None and settings.ops_port:
        sites.append(Site(apps.ops, settings.ops_port + index, apps.make_ops_site, shared=False))
    if apps.admin is not None and admin_port:
        sites.append(Site(apps.admin, admin_port, apps.make_ops_site))
    try:
        served = uvloop.run(
            serve(
                *sites,
                host=settings.host,
                name=name,
                hang_up=apps.main[SERVICE_TYPES_FILE].read_soon,
                reuse_port=workers.is_worker(),
            )
        )
    except OSError as error:
        raise click.ClickException(f"{error.filename or name}: {error.strerror or error}") from None
    if not served:
        sys.exit(TERMINATED)


async def _spare_the_long_lived(_app: web.Application) -> None:
    """Take what the start made out of garbage collection: modules, models, and the series of metrics.

    To walk these tens of thousands of objects again and again takes a tenth of the processor and holds up all streams.
    """
    gc.collect()
    gc.freeze()


def _warn(settings: Settings) -> None:
    """Warn of settings that may be mistakes."""
    from services.auth.settings import AuthSettings
    from services.gateway.settings import GatewaySettings

    known = {*AuthSettings.model_fields, *GatewaySettings.model_fields}
    for name, meant in misspelt(given_names(), known):
        _log.warning("unknown_setting", variable=name, like=meant)
    if settings.mlpa_debug:
        _log.warning("development_mode", advice="its secrets are public: never reachable from outside")
