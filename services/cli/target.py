"""The running system that a command talks to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import click

from services.cli.client import Client, RequestFailed
from services.cli.supervisor import RunningSystem

_T = TypeVar("_T")
_Command = TypeVar("_Command", bound=Callable[..., Any])


class Target:
    """The running system, and the data folder of `mlpa up`."""

    def __init__(self, data: Path, auth_url: str | None, gateway_url: str | None) -> None:
        running = RunningSystem.load(data)
        self.data = data
        self.environment = dict(running.environment) if running else {}
        self.auth_url = auth_url or (running.auth_url if running else "http://127.0.0.1:8081")
        self.gateway_url = gateway_url or (running.gateway_url if running else "http://127.0.0.1:8080")

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """:raises click.ClickException: a service refused, or does not answer."""
        try:
            return asyncio.run(coroutine)
        except RequestFailed as error:
            raise click.ClickException(str(error)) from None
        except aiohttp.ClientError as error:
            raise click.ClickException(f"{error}; is the system running? (mlpa up)") from None

    def client(self) -> AbstractAsyncContextManager[Client]:
        return Client.open(auth_url=self.auth_url, gateway_url=self.gateway_url)


MODEL = click.option("--model", default="local/slow", show_default=True)
TEXT = click.argument("text", default="Tell me about Firefox.")
DATA = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".mlpa"),
    show_default=True,
    help="Data folder of `mlpa up`, which tells where the system runs; what a command makes is kept there too.",
)


def options(command: _Command) -> _Command:
    """The options of a target."""
    command = click.option("--gateway-url", help="The gateway, when it isn't the one of the data folder.")(command)
    command = click.option("--auth-url", help="Auth, when it isn't the one of the data folder.")(command)
    return DATA(command)


def shipped(client: str, help: str) -> Callable[[_Command], _Command]:
    """The option to ask as a shipped client does."""
    return click.option("--as", "shipped", type=click.Choice([client]), help=help)


async def show(pieces: AsyncIterator[str]) -> None:
    """Print an answer as it streams."""
    async for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
