"""``mlpa keys``: the keys that sign access tokens."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import click

from services.auth.settings import AuthSettings
from services.auth.tokens import key_ring as key_files


@click.group()
def keys() -> None:
    """The keys that sign access tokens. ES256, as PEM files in MLPA_SIGNING_KEYS_DIR."""


_OUT = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the keys, instead of MLPA_SIGNING_KEYS_DIR.",
)


def _folder(out: Path | None) -> Path:
    if out is not None:
        return out
    folder = AuthSettings.lenient().mlpa_signing_keys_dir
    if folder is None:
        raise click.UsageError("MLPA_SIGNING_KEYS_DIR is not set; name a folder with --out")
    return folder


def _load(folder: Path) -> list[key_files.SigningKey]:
    return [key_files.load_key(path) for path in key_files.key_files(folder)]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else "at once"


@keys.command("list")
@_OUT
def list_(out: Path | None) -> None:
    """List all keys. It says which one signs, which wait, which are only still published."""
    folder = _folder(out)
    found = sorted(_load(folder), key=lambda key: (key.activation, key.path.name))
    if not found:
        click.echo(f"{folder}: no keys")
        return
    signing = key_files.KeyRing(folder).signing_key().kid
    now = time.time()
    for key in found:
        state = "signs" if key.kid == signing else "waits" if key.activation > now else "published"
        click.echo(f"{key.kid}  {state:9}  from {_time(key.activation):20}  {key.path.name}")


@keys.command()
@_OUT
@click.option(
    "--now", "at_once", is_flag=True, help="Sign with it at once; only when no gateway needs time to learn it."
)
def rotate(out: Path | None, at_once: bool) -> None:
    """Make the next key. It is published from now on, and signs after KEY_ACTIVATION_SECONDS (an hour)."""
    folder = _folder(out)
    first = not folder.is_dir() or not key_files.key_files(folder)
    delay = 0 if at_once or first else AuthSettings.lenient().key_activation_seconds
    path = key_files.create_key(folder, activate_at=time.time() + delay)
    key = key_files.load_key(path)
    click.echo(f"{key.kid}  signs from {_time(key.activation)}  {path}")


@keys.command()
@_OUT
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
def prune(out: Path | None, dry_run: bool) -> None:
    """Remove the keys that no valid token can carry any more."""
    folder = _folder(out)
    ttl = AuthSettings.lenient().longest_token_ttl
    for key in key_files.prunable(_load(folder), now=time.time(), token_ttl=ttl):
        if not dry_run:
            key.path.unlink()
        click.echo(f"{'would remove' if dry_run else 'removed'} {key.kid}  {key.path}")
