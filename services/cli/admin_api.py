"""Auth's API of operators, as the commands of support use it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

import aiohttp
import click
from yarl import URL

_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)

AUTH_URL = click.option(
    "--auth-url", default="http://127.0.0.1:8081", show_default=True, help="Auth, or its ops port if it has one."
)
LIMIT = click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="How many at most.")
CURSOR = click.option("--cursor", help="The `next_cursor` of the page before.")
REASON = click.option("--reason", default="", help="For the audit log and the console.")


class AdminApi:
    """The API at one address. The key is that of ``MLPA_ADMIN_KEY``."""

    def __init__(self, auth_url: str) -> None:
        """:raises UsageError: there is no key."""
        self._auth = auth_url.rstrip("/")
        self._key = os.environ.get("MLPA_ADMIN_KEY", "")
        if not self._key:
            raise click.UsageError("MLPA_ADMIN_KEY is not set: an admin key of auth")

    def show(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> None:
        """Send a request, and print the answer.

        :param path: percent-encoded.
        :param query: what is empty is left out.
        :raises ClickException: it is refused, or auth doesn't answer.
        """
        url = URL(self._auth + path, encoded=True).update_query(
            {name: value for name, value in (query or {}).items() if value}
        )
        headers = {"Authorization": f"Bearer {self._key}"}
        click.echo(json.dumps(asyncio.run(ask("auth", method, url, headers=headers, json=body)), indent=2))


async def ask(service: str, method: str, url: URL, **options: Any) -> Any:
    """The JSON that a service answers.

    :raises ClickException: it refuses, or doesn't answer.
    """
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.request(method, url, **options) as response,
        ):
            answer = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise click.ClickException(f"{url.origin()}: no answer of {service} ({type(error).__name__})") from None
    if not response.ok:
        said = answer["error"]  # auth's form, or the gateway's
        code, message = (
            (said, answer["error_description"]) if isinstance(said, str) else (said["code"], said["message"])
        )
        raise click.ClickException(f"{response.status} {code}: {message}")
    return answer
