"""``mlpa play``: a simulated install of an Android app against a running system."""

from __future__ import annotations

from pathlib import Path

import click

from services.cli import target
from services.cli.client import Client
from services.cli.target import Target
from services.local.files import write_private
from services.local.play import PACKAGE, Install


class _Context(Target):
    """The running system, and the file of the install."""

    @property
    def path(self) -> Path:
        return self.data / "play.json"

    @property
    def google_url(self) -> str:
        return self.environment.get("PLAY_BASE_URL", "http://127.0.0.1:8086")

    def load(self) -> Install:
        try:
            return Install.from_json(self.path.read_text())
        except FileNotFoundError:
            raise click.ClickException(f"{self.path} is not there; make an install: mlpa play new") from None

    async def exchange(self, client: Client, service_type: str) -> str:
        return await client.exchange_install(self.load(), self.google_url, service_type)


@click.group()
@target.options
@click.pass_context
def play(context: click.Context, data: Path, auth_url: str | None, gateway_url: str | None) -> None:
    """A simulated install of an Android app. The stand-in for Google of `mlpa up` vouches for it."""
    context.obj = _Context(data, auth_url, gateway_url)


_pass = click.make_pass_decorator(_Context)
_SCOPE = click.option("--scope", default="s2s", show_default=True, help="The service type.")


@play.command()
@click.option("--package", help="The app; the system's first one when not given.")
@_pass
def new(context: _Context, package: str | None) -> None:
    """Make an install with an id of its own; it replaces the one before."""
    made = Install(package=package or context.environment.get("PLAY_PACKAGES", PACKAGE).split(",")[0])
    context.data.mkdir(parents=True, exist_ok=True)
    write_private(context.path, made.to_json())
    click.echo(made.user_id)


@play.command()
@_SCOPE
@_pass
def token(context: _Context, scope: str) -> None:
    """Print an access token for the install."""

    async def exchange() -> str:
        async with context.client() as client:
            return await context.exchange(client, scope)

    click.echo(context.run(exchange()))


@play.command()
@_SCOPE
@target.MODEL
@target.shipped("android", "As shipped Firefox for Android asks for the answer.")
@target.TEXT
@_pass
def chat(context: _Context, scope: str, model: str, shipped: str | None, text: str) -> None:
    """Exchange an integrity token and ask TEXT. The answer is shown as it streams."""

    async def talk() -> None:
        async with context.client() as client:
            access_token = await context.exchange(client, scope)
            if shipped:
                pieces = client.chat_as_android(access_token, scope, model=model, text=text)
            else:
                pieces = client.chat(access_token, model=model, text=text)
            await target.show(pieces)

    context.run(talk())
