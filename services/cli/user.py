"""``mlpa user``: what support does for a user, over auth's API with an admin key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import click

from services.cli.admin_api import AUTH_URL, REASON, AdminApi

_USER = click.argument("user_id")
_IDENTITY = click.argument("identity", metavar="ID")


@click.group()
@AUTH_URL
@click.pass_context
def user(context: click.Context, auth_url: str) -> None:
    """A user of a running system. The admin key is that of MLPA_ADMIN_KEY; what it does is in the audit log."""
    context.obj = _Api(auth_url)


class _Api(AdminApi):
    def user(self, method: str, user_id: str, path: str = "", body: dict[str, Any] | None = None) -> None:
        """Send a request about a user, and print the user as it is then."""
        self.show(method, f"/user/{quote(user_id, safe='')}{path}", body=body)


_pass = click.make_pass_decorator(_Api)


@user.command()
@_USER
@_pass
def show(api: _Api, user_id: str) -> None:
    """Print a user."""
    api.user("GET", user_id)


@user.command()
@_USER
@REASON
@_pass
def block(api: _Api, user_id: str, reason: str) -> None:
    """Block the identity in all its service types."""
    api.user("POST", user_id, "/block", {"reason": reason or None})


@user.command()
@_USER
@_pass
def unblock(api: _Api, user_id: str) -> None:
    """Admit the identity again."""
    api.user("POST", user_id, "/unblock")


@user.command()
@_IDENTITY
@_pass
def erase(api: _Api, identity: str) -> None:
    """Erase an identity in all its service types. ID is that of a user or the identity alone."""
    api.user("DELETE", identity)
    click.echo("erased", err=True)


@user.command()
@_IDENTITY
@_pass
def export(api: _Api, identity: str) -> None:
    """Print all that is held about an identity, as JSON. ID is that of a user or the identity alone."""
    api.save(f"/user/{quote(identity, safe='')}/export")


@user.command()
@_USER
@click.argument("service_type")
@_pass
def tier(api: _Api, user_id: str, service_type: str) -> None:
    """Give a user the money and rates of another service type."""
    api.user("POST", user_id, "/budget", {"service_type": service_type})


@user.command()
@_USER
@click.option("--usd", type=float, default=0.0, help="More money in each period.")
@click.option("--no-rates", is_flag=True, help="RPM, TPM and open streams refuse nothing.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="How long it holds.")
@click.option("--end", is_flag=True, help="End the exception that there is.")
@REASON
@_pass
def exception(api: _Api, user_id: str, usd: float, no_rates: bool, hours: float | None, end: bool, reason: str) -> None:
    """Let a user spend more, or without rates, for some hours."""
    if end:
        api.user("DELETE", user_id, "/exception")
        return
    if hours is None:
        raise click.UsageError("--hours says how long the exception holds")
    try:
        until = datetime.now(UTC) + timedelta(hours=hours)
    except (OverflowError, ValueError):  # ValueError: not a number
        raise click.BadParameter("there is no such date", param_hint="--hours") from None
    body = {"until": until.isoformat(), "extra_budget_usd": usd, "without_rates": no_rates, "reason": reason or None}
    api.user("POST", user_id, "/exception", body)
