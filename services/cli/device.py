"""``mlpa device``: a simulated App Attest device against a running system, and the devices that auth knows."""

from __future__ import annotations

import asyncio
import csv
import secrets
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, TypeVar
from urllib.parse import quote

import aiohttp
import click

from services.auth.devices import importing, storage
from services.auth.receipts.apple import DEVELOPMENT, PRODUCTION, Apple
from services.auth.receipts.renewal import Renewal, Stopped, prepare
from services.auth.settings import AuthSettings
from services.cli import target
from services.cli.admin_api import CURSOR, LIMIT, REASON, AdminApi
from services.cli.proxy import Proxy, serve
from services.cli.target import Target
from services.local.device import Device
from services.local.files import write_private
from services.local.pki import Pki
from shared.stores.postgres import Database, DatabaseUnavailable

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Context(Target):
    """The running system, and the file of the device."""

    @property
    def device_path(self) -> Path:
        return self.data / "device.json"

    def load(self) -> Device:
        try:
            return Device.from_json(self.device_path.read_text())
        except FileNotFoundError:
            raise click.ClickException(f"{self.device_path} is not there; make a device: mlpa device new") from None

    def save(self, device: Device) -> None:
        """Save the device, readable by its owner alone and atomically: a lost counter is a lost device."""
        write_private(self.device_path, device.to_json())


@click.group()
@target.options
@click.pass_context
def device(context: click.Context, data: Path, auth_url: str | None, gateway_url: str | None) -> None:
    """A simulated device, and the devices that auth knows."""
    context.obj = _Context(data, auth_url, gateway_url)


_pass = click.make_pass_decorator(_Context)
_SCOPE = click.option("--scope", default="ai", show_default=True, help="The service type.")


@device.command()
@click.option("--bundle-id", help="The app; the system's first one when not given.")
@click.option("--team", help="Apple team id; the system's when not given.")
@_pass
def new(context: _Context, bundle_id: str | None, team: str | None) -> None:
    """Make a simulated device, or a new key on the one that there is."""
    pki = context.data / "app-attest" / "pki.json"
    if not pki.exists():
        raise click.ClickException(f"{pki} is not there: the test root is made by mlpa up")
    bundles = context.environment.get("APP_ATTEST_BUNDLE_IDS", "org.mozilla.ios.Fennec")
    made = Device(
        pki=Pki.from_json(pki.read_text()),
        team_id=team or context.environment.get("APP_DEVELOPMENT_TEAM", "DEVELOPMNT"),
        bundle_id=bundle_id or bundles.split(",")[0],
    )
    if context.device_path.exists():
        made.phone = context.load().phone
    context.save(made)
    click.echo(made.key_id_b64)


@device.command()
@_pass
def enroll(context: _Context) -> None:
    """Enrol the simulated device."""

    async def enrol(made: Device) -> None:
        async with context.client() as client:
            await client.enrol(made)

    made = context.load()
    context.run(enrol(made))
    click.echo(f"enrolled {made.key_id_b64}")


async def _token(context: _Context, made: Device, scope: str) -> str:
    async with context.client() as client:
        try:
            return await client.exchange_device(made, scope)
        finally:
            context.save(made)


@device.command()
@_SCOPE
@_pass
def token(context: _Context, scope: str) -> None:
    """Print an access token for the device."""
    click.echo(context.run(_token(context, context.load(), scope)))


@device.command()
@_SCOPE
@target.MODEL
@target.shipped("ios", "As shipped Firefox for iOS does, without an exchange: an assertion over the request itself.")
@target.TEXT
@_pass
def chat(context: _Context, scope: str, model: str, shipped: str | None, text: str) -> None:
    """Exchange an assertion and ask TEXT. The answer is shown as it streams."""

    async def talk() -> None:
        made = context.load()
        async with context.client() as client:
            if shipped:
                pieces = client.chat_as_ios(made, scope, model=model, text=text)
            else:
                pieces = client.chat(await _token(context, made, scope), model=model, text=text)
            try:
                await target.show(pieces)
            finally:
                context.save(made)

    context.run(talk())


@device.command()
@_SCOPE
@click.option("--port", type=click.IntRange(0, 65535), default=8089, show_default=True, help="0 takes a free one.")
@click.option("--key", envvar="MLPA_PROXY_KEY", help="The key that tools give; a new one when not given.")
@_pass
def proxy(context: _Context, scope: str, port: int, key: str | None) -> None:
    """Give tools with a static key the device's tokens.

    Serves the gateway's API on this machine alone, until Ctrl-C, and renews the access token in time: for tools that
    can't, such as `llm` and `aider`.
    """
    made, known = context.load(), key or secrets.token_urlsafe(24)

    def ready(url: str) -> None:
        click.echo(f"export OPENAI_BASE_URL={url} OPENAI_API_BASE={url} OPENAI_API_KEY={known}")

    try:
        context.run(serve(Proxy(context.gateway_url, known, lambda: _token(context, made, scope)), port, ready))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        raise click.ClickException(f"port {port}: {error.strerror or error}") from None


#: The criteria by which devices are listed and blocked.
_CRITERIA = (
    click.option("--bundle", "bundle_id", help="The app."),
    click.option("--version", "bundle_version", help="The app's version."),
    click.option("--category", "validation_category", type=click.IntRange(0), help="How the app was distributed."),
    click.option("--first-seen-from", type=click.DateTime(), help="Enrolled then or later; in UTC."),
    click.option("--first-seen-to", type=click.DateTime(), help="Enrolled before; in UTC."),
    click.option("--source-digest", help="Enrolled from this source; `list` prints the digests."),
)


def _criteria(command: _Command) -> _Command:
    for option in reversed(_CRITERIA):
        command = option(command)
    return command


def _sent(criteria: dict[str, Any]) -> dict[str, Any]:
    """The criteria as the API takes them."""
    return {
        name: f"{value.isoformat()}Z" if isinstance(value, datetime) else value
        for name, value in criteria.items()
        if value is not None
    }


@device.command("list")
@LIMIT
@CURSOR
@_criteria
@click.argument("start", default="")
@_pass
def list_(context: _Context, /, limit: int, cursor: str | None, start: str, **criteria: Any) -> None:
    """Print the devices that auth knows, by key id. With START, those whose key id begins with it."""
    query = {"limit": limit, "cursor": cursor, "q": start, **{n: str(value) for n, value in _sent(criteria).items()}}
    AdminApi(context.auth_url).show("GET", "/device", query=query)


@device.command()
@_criteria
@click.option("--apply", is_flag=True, help="Block them; without it they are only counted.")
@REASON
@_pass
def block(context: _Context, /, apply: bool, reason: str, **criteria: Any) -> None:
    """Block all devices that meet the criteria. 10,000 at most, with one entry in the audit log.

    `mlpa user unblock` admits one again.
    """
    body = {**_sent(criteria), "dry_run": not apply, "reason": reason or None}
    AdminApi(context.auth_url).show("POST", "/device/block", body=body)


@device.command()
@click.argument("key_id")
@REASON
@_pass
def revoke(context: _Context, key_id: str, reason: str) -> None:
    """Refuse the device KEY_ID from now on, in all its service types. This can't be undone."""
    body = {"reason": reason or None}
    AdminApi(context.auth_url).show("POST", f"/device/{quote(key_id, safe='')}/revoke", body=body)


@device.command("receipts")
@click.option(
    "--rate", type=click.FloatRange(0.01, 1000), default=10, show_default=True, help="Requests to Apple per second."
)
@click.option(
    "--every", type=click.IntRange(1, 60), default=7, show_default=True, help="Days between two renewals of a receipt."
)
@click.option("--limit", type=click.IntRange(1), help="How many receipts at most.")
@_pass
def receipts_(context: _Context, rate: float, every: int, limit: int | None) -> None:
    """Renew the receipts that are due. Verifies those of DATABASE_URL, asks Apple, and stores the risk metrics.

    Without APPLE_RECEIPT_KEY, those of a running `mlpa up`.

    It works until nothing is due; run it every few minutes. Several may run at the same time; the next continues
    where one was stopped. Exit code 1 if Apple refuses the key, asks to wait, or does not answer.
    """
    settings = AuthSettings.lenient()
    if settings.apple_receipt_key is None:
        local = {name.lower(): value for name, value in context.environment.items()}
        settings = AuthSettings.lenient(**{name: local[name] for name in AuthSettings.model_fields if name in local})
    try:
        asyncio.run(_receipts(settings, rate=rate, every=every, limit=limit))
    except DatabaseUnavailable as error:
        raise click.ClickException(f"PostgreSQL: {error.reason}; what was renewed is kept") from None
    except Stopped as error:
        raise click.ClickException(str(error)) from None


async def _receipts(settings: AuthSettings, *, rate: float, every: int, limit: int | None) -> None:
    credentials, trust = prepare(settings)
    url = settings.database_url.get_secret_value()
    base_url = settings.apple_receipt_base_url or (PRODUCTION if settings.app_attest_production else DEVELOPMENT)
    async with aiohttp.ClientSession() as session, Database.connect(url, max_size=8, timeout=30) as database:
        renewal = Renewal(database, Apple(session, base_url, credentials), trust, rate=rate, every=every * 86_400)
        try:
            await renewal.run(limit)
            if not renewal.done:
                click.echo("nothing is due")
        finally:
            if renewal.done:
                click.echo(", ".join(f"{number} {name}" for name, number in sorted(renewal.done.items())))


@device.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8"))
def import_(file: TextIO) -> None:
    """Take over the devices of FILE into DATABASE_URL.

    FILE is CSV or JSON lines of key_id_b64, public_key_pem, counter, environment (production or development) and
    bundle_id; the last two may be missing unless APP_ATTEST_PRODUCTION is set, and then production alone is taken.

    May be repeated: a known device keeps its larger counter. Refused rows are reported, line by line.
    """
    settings = AuthSettings.lenient()
    try:
        taken, refused = asyncio.run(
            _import(file, settings.database_url.get_secret_value(), production=settings.app_attest_production)
        )
    except DatabaseUnavailable as error:
        raise click.ClickException(f"PostgreSQL: {error.reason}; what was stored is kept") from None
    except (ValueError, csv.Error) as error:
        raise click.ClickException(f"{file.name}: {error}") from None
    click.echo(f"{taken} taken, {refused} refused")
    if refused:
        raise click.exceptions.Exit(1)


async def _import(file: TextIO, url: str, *, production: bool) -> tuple[int, int]:
    taken = refused = 0

    def good() -> Iterator[storage.ImportedDevice]:
        nonlocal refused
        for row in importing.read_rows(file, production=production):
            if isinstance(row, importing.RowRefused):
                refused += 1
                click.echo(str(row), err=True)
            else:
                yield row

    devices = good()
    async with Database.connect(url, max_size=1, timeout=60) as database:
        while batch := list(islice(devices, importing.BATCH)):
            await storage.store_imported(database, batch)
            taken += len(batch)
            if taken % (20 * importing.BATCH) == 0:
                click.echo(f"{taken} taken, {refused} refused so far", err=True)
    return taken, refused


@device.command()
@click.option("--since", type=click.DateTime(), help="Leave out what was enrolled before; in UTC.")
def export(since: datetime | None) -> None:
    """Write all devices as CSV, as `import` takes them. Those of DATABASE_URL, but for revoked ones.

    So that another deployment knows the devices that enrolled at this one.
    """
    settings = AuthSettings.lenient()
    start = since.replace(tzinfo=UTC).timestamp() if since else 0
    try:
        asyncio.run(_export(settings.database_url.get_secret_value(), start))
    except DatabaseUnavailable as error:
        raise click.ClickException(f"PostgreSQL: {error.reason}; what was written is not all") from None


async def _export(url: str, since: float) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(importing.COLUMNS)
    after = ""
    async with Database.connect(url, max_size=1, timeout=60) as database:
        while page := await storage.page(database, after=after, since=since, limit=importing.BATCH):
            writer.writerows(importing.row_of(device) for device in page)
            after = page[-1].key_id
