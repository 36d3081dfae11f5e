"""``mlpa fxa``: tokens of the FxA stand-in, and a user's remembered verifications."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import click

from services.auth.fxa.cache import Cache
from services.auth.fxa.metrics import FxAMetrics
from services.auth.fxa.models import FxAConfig
from services.auth.settings import AuthSettings
from services.cli import target
from services.cli.supervisor import RunningSystem
from shared.domain.identity import Credential
from shared.errors import DependencyUnavailable
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry

TIMEOUT_SECONDS = 10


@click.group()
def fxa() -> None:
    """Firefox accounts."""


_FXA_URL = click.option(
    "--fxa-url", envvar="FXA_BASE_URL", help="The stand-in, when it isn't the one of the data folder."
)
_ACCOUNT = click.argument("account", metavar="UID|TOKEN")


@fxa.command()
@target.DATA
@_FXA_URL
@click.option("--uid", help="32 hex digits; a new user when not given.")
@click.option("--scope", "scopes", multiple=True, help="A scope of the token; may be given again.")
@click.option("--client-id", help="The relying party; Firefox's when not given.")
@click.option("--opaque", is_flag=True, help="64 hex digits rather than a JWT.")
@click.option("--ttl", type=float, help="Its life in seconds; six hours when not given.")
def token(
    data: Path,
    fxa_url: str | None,
    uid: str | None,
    scopes: tuple[str, ...],
    client_id: str | None,
    opaque: bool,
    ttl: float | None,
) -> None:
    """Print a token of the running FxA stand-in."""
    order = {
        "uid": uid,
        "scopes": scopes or None,
        "client_id": client_id,
        "kind": "opaque" if opaque else "jwt",
        "ttl": ttl,
    }
    given = {name: value for name, value in order.items() if value is not None}
    click.echo(asyncio.run(_ask(f"{_origin(data, fxa_url)}/local/token", given, "token")))


@fxa.command("password-change")
@target.DATA
@_FXA_URL
@_ACCOUNT
def password_change(data: Path, fxa_url: str | None, account: str) -> None:
    """Change an account's password at the stand-in. It tells auth."""
    click.echo(asyncio.run(_happen(_origin(data, fxa_url), account, "password-change")))


@fxa.command()
@target.DATA
@_FXA_URL
@_ACCOUNT
def delete(data: Path, fxa_url: str | None, account: str) -> None:
    """Delete an account of the FxA stand-in, which tells auth."""
    click.echo(asyncio.run(_happen(_origin(data, fxa_url), account, "delete-user")))


@fxa.command()
@target.DATA
@click.option("--uid", help="32 hex digits; a new user when not given.")
@click.option("--scope", default="ai", show_default=True, help="The service type.")
@target.MODEL
@target.shipped("desktop", "As shipped Firefox for desktop does, without an exchange: the FxA token with the request.")
@target.TEXT
def chat(data: Path, uid: str | None, scope: str, model: str, shipped: str | None, text: str) -> None:
    """Exchange a token of the stand-in and ask TEXT. The answer is shown as it streams."""
    if RunningSystem.load(data) is None:
        raise click.ClickException(f"{data} does not tell where the system runs (mlpa up)")
    running = target.Target(data, None, None)

    async def talk() -> None:
        order = {"scopes": ["profile:uid"], "kind": "jwt", **({"uid": uid} if uid else {})}
        fxa_token = await _ask(f"{_origin(data, None)}/local/token", order, "token")
        async with running.client() as client:
            if shipped:
                pieces = client.chat_as_desktop(fxa_token, scope, model=model, text=text)
            else:
                pieces = client.chat(await client.exchange_fxa(fxa_token, scope), model=model, text=text)
            await target.show(pieces)

    running.run(talk())


@fxa.command()
@click.argument("uid")
def purge(uid: str) -> None:
    """Forget all verified tokens of the user UID. The next use of each is verified again."""
    if not Credential.FXA.identity.fullmatch(uid):
        raise click.BadParameter("a uid has 32 lowercase hex digits")
    settings = AuthSettings.from_environment()
    try:
        dropped = asyncio.run(_purge(settings, uid))
    except DependencyUnavailable as error:
        raise click.ClickException("Redis did not answer; nothing may have been dropped") from error
    click.echo(f"dropped {dropped}")


def _origin(data: Path, fxa_url: str | None) -> str:
    running = RunningSystem.load(data)
    base = fxa_url or (running.fxa_url if running else "http://127.0.0.1:8082")
    return base.rstrip("/").removesuffix("/v1")


async def _happen(origin: str, account: str, event: str) -> str:
    """Send an event of an account, which a uid or a token names. Returns auth's answer as text."""
    is_uid = Credential.FXA.identity.fullmatch(account)
    uid = account if is_uid else await _ask(f"{origin}/v1/verify", {"token": account}, "user")
    status = await _ask(f"{origin}/local/events", {"uid": uid, "event": event}, "status")
    return f"{event} of {uid}: " + (f"auth answered {status}" if status else "auth did not answer")


async def _ask(url: str, order: dict[str, Any], member: str) -> Any:
    """A member of the stand-in's answer.

    :raises click.ClickException: it refused, or there is none.
    """
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS)) as session,
            session.post(url, json=order) as response,
        ):
            text = await response.text()
            if response.status != 200:
                raise click.ClickException(f"{url} answered {response.status}: {text.strip()[:200]}")
            return json.loads(text)[member]
    except (aiohttp.ClientError, TimeoutError) as error:
        raise click.ClickException(f"no FxA stand-in at {url}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{url} is no FxA stand-in") from error


async def _purge(settings: AuthSettings, uid: str) -> int:
    async with connect(settings.redis_url.get_secret_value()) as redis:
        config = FxAConfig.from_settings(settings)
        return await Cache(redis, config, clock=time.time, metrics=FxAMetrics(Registry())).purge(uid)
