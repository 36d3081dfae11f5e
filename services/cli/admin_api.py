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
    "--auth-url",
    default="http://127.0.0.1:8081",
    show_default=True,
    help="Auth at its ADMIN_PORT, or else OPS_PORT, if it has one.",
)
LIMIT = click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="How many at most.")
CURSOR = click.option("--cursor", help="The `next_cursor` of the page before.")
REASON = click.option("--reason", default="", help="For the audit log and the console.")


class AdminApi:
    """The API at one address. The key is that of ``MLPA_ADMIN_KEY``."""

    def __init__(self, auth_url: str) -> None:
        self._auth = auth_url.rstrip("/")

    def save(self, path: str) -> None:
        """Ask for JSON of any length, and print it as it comes.

        :raises ClickException: as ``show``, or when it breaks off.
        """
        asyncio.run(_save(address(self._auth, path), self._headers()))

    def _headers(self) -> dict[str, str]:
        key = os.environ.get("MLPA_ADMIN_KEY", "")
        if not key:
            raise click.UsageError("MLPA_ADMIN_KEY is not set: an admin key of auth")
        return {"Authorization": f"Bearer {key}"}

    def show(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> None:
        """Send a request, and print the answer.

        :param path: percent-encoded.
        :param query: what is empty is left out.
        :raises UsageError: there is no key, or the address is no URL.
        :raises ClickException: it is refused, or auth doesn't answer.
        """
        headers = self._headers()
        url = address(self._auth, path).update_query({name: value for name, value in (query or {}).items() if value})
        answer = asyncio.run(ask("auth", method, url, headers=headers, json=body))
        if answer is not None:
            click.echo(json.dumps(answer, indent=2))


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
            answer = None if response.status == 204 else await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise click.ClickException(f"{url.origin()}: no answer from {service} ({type(error).__name__})") from None
    if response.ok:
        return answer
    raise _refusal(service, url, response.status, answer)


async def _save(url: URL, headers: dict[str, str]) -> None:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(connect=5, sock_read=30)) as session,
            session.get(url, headers=headers) as response,
        ):
            if not response.ok:
                raise _refusal("auth", url, response.status, await response.json())
            async for piece in response.content.iter_any():
                click.echo(piece, nl=False)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise click.ClickException(f"{url.origin()}: no whole answer from auth ({type(error).__name__})") from None


def _refusal(service: str, url: URL, status: int, answer: Any) -> click.ClickException:
    match answer:
        case {"error": str(code), "error_description": str(message)}:  # auth's form
            pass
        case {"error": {"code": str(code), "message": str(message)}}:  # the gateway's
            pass
        case _:
            return click.ClickException(f"{url.origin()}: {status}, and not in the words of {service}")
    return click.ClickException(f"{status} {code}: {message}")
