"""``mlpa user``: what support does for a user, over auth's API with an admin key."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import aiohttp
import click
from yarl import URL

_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
_USER = click.argument("user_id")


@click.group()
@click.option(
    "--auth-url", default="http://127.0.0.1:8081", show_default=True, help="Auth, or its ops port if it has one."
)
@click.pass_context
def user(context: click.Context, auth_url: str) -> None:
    """A user of a running system. The admin key is that of MLPA_ADMIN_KEY; what it does is in the audit log."""
    key = os.environ.get("MLPA_ADMIN_KEY", "")
    if not key:
        raise click.UsageError("MLPA_ADMIN_KEY is not set: an admin key of auth")
    context.obj = _Api(auth_url.rstrip("/"), key)


class _Api:
    def __init__(self, auth_url: str, key: str) -> None:
        self._auth, self._key = auth_url, key

    def show(self, method: str, user_id: str, path: str = "", body: dict[str, Any] | None = None) -> None:
        """Send a request about a user, and print the user as it is then."""
        url = URL(f"{self._auth}/user/{quote(user_id, safe='')}{path}", encoded=True)
        click.echo(json.dumps(asyncio.run(self._ask(method, url, body)), indent=2))

    async def _ask(self, method: str, url: URL, body: dict[str, Any] | None) -> Any:
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT) as session,
                session.request(method, url, json=body, headers=headers) as response,
            ):
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise click.ClickException(f"{url.origin()}: no answer of auth ({type(error).__name__})") from None
        if not response.ok:
            raise click.ClickException(f"{response.status} {answer['error']}: {answer['error_description']}")
        return answer


_pass = click.make_pass_decorator(_Api)


@user.command()
@_USER
@_pass
def show(api: _Api, user_id: str) -> None:
    """Print a user."""
    api.show("GET", user_id)


@user.command()
@_USER
@click.option("--reason", default="", help="For the audit log and the console.")
@_pass
def block(api: _Api, user_id: str, reason: str) -> None:
    """Block the identity in all its service types."""
    api.show("POST", user_id, "/block", {"reason": reason or None})


@user.command()
@_USER
@_pass
def unblock(api: _Api, user_id: str) -> None:
    """Admit the identity again."""
    api.show("POST", user_id, "/unblock")


@user.command()
@_USER
@click.argument("service_type")
@_pass
def tier(api: _Api, user_id: str, service_type: str) -> None:
    """Give a user the money and rates of another service type."""
    api.show("POST", user_id, "/budget", {"service_type": service_type})


@user.command()
@_USER
@click.option("--usd", type=float, default=0.0, help="More money in each period.")
@click.option("--no-rates", is_flag=True, help="RPM, TPM and open streams refuse nothing.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="How long it holds.")
@click.option("--end", is_flag=True, help="End the exception that there is.")
@click.option("--reason", default="", help="For the audit log and the console.")
@_pass
def exception(api: _Api, user_id: str, usd: float, no_rates: bool, hours: float | None, end: bool, reason: str) -> None:
    """Let a user spend more, or without rates, for some hours."""
    if end:
        api.show("DELETE", user_id, "/exception")
        return
    if hours is None:
        raise click.UsageError("--hours says how long the exception holds")
    until = datetime.now(UTC) + timedelta(hours=hours)
    body = {
        "until": until.isoformat(),
        "extra_budget_usd": usd,
        "without_rates": no_rates,
        "reason": reason or None,
    }
    api.show("POST", user_id, "/exception", body)
