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
        self._auth = auth_url.rstrip("/")

    def show(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> None:
        """Send a request, and print the answer.

        :param path: percent-encoded.
        :param query: what is empty is left out.
        :raises UsageError: there is no key, or the address is no URL.
        :raises ClickException: it is refused, or auth doesn't answer.
        """
        key = os.environ.get("MLPA_ADMIN_KEY", "")
        if not key:
            raise click.UsageError("MLPA_ADMIN_KEY is not set: an admin key of auth")
        url = address(self._auth, path).update_query({name: value for name, value in (query or {}).items() if value})
        headers = {"Authorization": f"Bearer {key}"}
        click.echo(json.dumps(asyncio.run(ask("auth", method, url, headers=headers, json=body)), indent=2))


def address(base: str, path: str) -> URL:
    """The URL of a path, which is percent-encoded, at a service.

    :raises UsageError: the base is not an http or https URL.
    """
    try:
        url = URL(base.rstrip("/") + path, encoded=True)
        if url.scheme in ("http", "https") and url.host and url.port:
            return url
    except ValueError:
        pass
    raise click.UsageError(f"{base!r} is not an http or https URL")


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
        raise click.ClickException(f"{url.origin()}: no answer from {service} ({type(error).__name__})") from None
    if response.ok:
        return answer
    match answer:
        case {"error": str(code), "error_description": str(message)}:  # auth's form
            pass
        case {"error": {"code": str(code), "message": str(message)}}:  # the gateway's
            pass
        case _:
            raise click.ClickException(f"{url.origin()}: {response.status}, and not in the words of {service}")
    raise click.ClickException(f"{response.status} {code}: {message}")
