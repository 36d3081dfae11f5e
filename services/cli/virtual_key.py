"""``mlpa virtual-key``: the gateways' key to LiteLLM, made with the master key and written to ``.env``."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click
from dotenv.parser import parse_stream

from services.auth.provisioning.client import LiteLLMAdmin, LiteLLMError, MasterKeyRefused, NoDatabase
from services.auth.settings import AuthSettings

NAME = "MLPA_VIRTUAL_KEY"


@click.command("virtual-key")
@click.option(
    "--env-file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    default=Path(".env"),
    show_default=True,
    help="The file to write to, its other lines stay as they are; - prints the line.",
)
@click.option(
    "--timeout", type=click.FloatRange(0.1), default=30, show_default=True, help="Seconds to wait for LiteLLM."
)
def virtual_key(env_file: Path, timeout: float) -> None:
    """Make LiteLLM's virtual key of the gateways. With MASTER_KEY; writes MLPA_VIRTUAL_KEY to .env.

    The key may use every model, and only the routes that the gateway needs. A key that .env had before stays valid
    until it is deleted at LiteLLM, so that running gateways can still use it.
    """
    settings = AuthSettings.lenient()
    if settings.master_key is None:
        raise click.ClickException("MASTER_KEY is not set: a virtual key is made with LiteLLM's master key")
    printed = str(env_file) == "-"
    if not printed:
        _check(env_file)
    alias = f"mlpa-gateway-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(4)}"  # LiteLLM requires a unique one
    try:
        key = asyncio.run(_make(settings.litellm_api_base, settings.master_key.get_secret_value(), alias, timeout))
    except NoDatabase:
        raise click.ClickException(
            "LiteLLM runs without a database, and has virtual keys only with one (DATABASE_URL on its side). "
            f"For development, {NAME} can be the master key itself."
        ) from None
    except MasterKeyRefused:
        raise click.ClickException("LiteLLM refuses MASTER_KEY: it is not the master_key of its config") from None
    except LiteLLMError as error:
        raise click.ClickException(f"{error} (LITELLM_API_BASE: {', '.join(settings.litellm_api_base)})") from None
    if printed:
        click.echo(f"{NAME}={key}")
        click.echo(f"The new key is {alias}", err=True)
        return
    try:
        replace_line(env_file, NAME, key)
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{env_file}: {error}. The new key is lost; at LiteLLM it is {alias}") from None
    click.echo(f"{env_file}: {NAME} is the new key {alias}")
    if os.environ.get(NAME):
        click.echo(f"The environment has a {NAME} of its own, which goes before {env_file}.", err=True)


def _check(env_file: Path) -> None:
    """Check that the file can be written, before a key is made."""
    try:
        _read(env_file)
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{env_file}: {error}") from None
    if not os.access(env_file.resolve().parent, os.W_OK):
        raise click.ClickException(f"{env_file}: its folder is not there, or not writable")


async def _make(base_urls: tuple[str, ...], master_key: str, alias: str, timeout: float) -> str:
    async with LiteLLMAdmin.open(base_urls, master_key, timeout=timeout) as admin:
        return await admin.make_key(alias)


def replace_line(path: Path, name: str, value: str) -> None:
    """Set one variable of an env file, atomically; the file is readable by its owner alone.

    Other lines stay unchanged. A symlink stays one: its target is replaced.

    :param value: needs no quoting.
    :raises OSError: the file can't be written.
    :raises UnicodeDecodeError: the file is not UTF-8.
    """
    target = path.resolve()
    before = _read(target)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f"{target.name}.")  # made with 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(_replaced(before, name, value))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: Path) -> str:
    return path.read_bytes().decode() if path.exists() else ""


def _replaced(text: str, name: str, value: str) -> str:
    """The text with the variable where it was first, without any second one; at the end if it was nowhere."""
    parts: list[str] = []
    placed = False
    for binding in parse_stream(io.StringIO(text)):
        original = binding.original.string
        if binding.key != name:
            parts.append(original)
            continue
        start = original.lstrip()
        blank = original[: len(original) - len(start)]
        if not placed:
            export = "export " if start.startswith("export ") else ""
            parts.append(f"{blank}{export}{name}={value}\n")
            placed = True
    if not placed:
        if parts and not "".join(parts).endswith("\n"):
            parts.append("\n")
        parts.append(f"{name}={value}\n")
    return "".join(parts)
