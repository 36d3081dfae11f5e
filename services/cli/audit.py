"""``mlpa audit``: the audit log, over auth's API with an admin key."""

from __future__ import annotations

import click

from services.cli.admin_api import AUTH_URL, CURSOR, LIMIT, AdminApi


@click.command()
@AUTH_URL
@LIMIT
@CURSOR
@click.argument("subject", default="")
def audit(auth_url: str, limit: int, cursor: str | None, subject: str) -> None:
    """Print the audit log, newest first. With SUBJECT, the whole id of a user or device, only what concerns it."""
    AdminApi(auth_url).show("GET", "/audit", query={"limit": limit, "cursor": cursor, "subject": subject})
