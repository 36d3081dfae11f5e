"""``mlpa app-attest``: captured App Attest objects, verified offline, for support.

A file is ``{"defaults": {...}, "vectors": [{...}]}``; each vector is laid over the defaults. See ``Vector`` for the
members; others (source, licence, notes, what was expected) are ignored.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import msgspec
from cryptography import x509

from services.auth.appattest.assertion import verify_assertion
from services.auth.appattest.attestation import MAX_ATTESTATION_BYTES, verify_attestation
from services.auth.appattest.encoding import decode_base64, decode_key_id
from services.auth.appattest.errors import AppAttestError
from services.auth.appattest.policy import Policy, apple_root_pem, load_roots

_EXIT_REJECTED = 1
_EXIT_UNREADABLE = 2


class Vector(msgspec.Struct, frozen=True):
    """One captured object, and the values to verify it with.

    An attestation needs ``attestation_b64``, ``key_id_b64`` and one of ``challenge_b64`` (hashed here) and
    ``client_data_hash_b64`` (used as it is); ``valid_at`` is the clock to use, default now. An assertion needs
    ``assertion_b64``, ``public_key_x962_b64`` and one of ``client_data_b64`` and ``client_data_hash_b64``.
    """

    id: str
    kind: Literal["attestation", "assertion"]
    app_id: Annotated[str, msgspec.Meta(pattern=r"^[^.]+\..+$")]
    environment: Literal["production", "development"] = "production"
    root_pem: str | None = None
    valid_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    last_counter: Annotated[int, msgspec.Meta(ge=0)] = 0
    attestation_b64: str | None = None
    assertion_b64: str | None = None
    challenge_b64: str | None = None
    client_data_b64: str | None = None
    client_data_hash_b64: str | None = None
    key_id_b64: str | None = None
    public_key_x962_b64: str | None = None


class UnreadableFile(Exception):
    """A file without usable vectors; ``str()`` of it is one line that says where and why."""


@click.group("app-attest")
def app_attest() -> None:
    """Captured App Attest objects."""


@app_attest.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def check(files: tuple[str, ...]) -> None:
    """Verify the objects in each FILE (- for standard input) offline.

    Prints one JSON line per object: {"id", "verdict": "accept" or "reject", "step": null or the failed step}.
    Exits with 1 if any is rejected, with 2 if a file can't be read.
    """
    exit_code = 0
    for file in files:
        try:
            verdicts = check_file(file)
        except UnreadableFile as error:
            click.echo(f"{file}: {error}", err=True)
            exit_code = _EXIT_UNREADABLE
            continue
        for verdict in verdicts:
            click.echo(json.dumps(verdict))
            if verdict["verdict"] == "reject":
                exit_code = max(exit_code, _EXIT_REJECTED)
    sys.exit(exit_code)


def check_file(file: str) -> list[dict[str, str | None]]:
    """The verdict on each vector of a file.

    :raises UnreadableFile: it is not a file of vectors.
    """
    verdicts = []
    for place, vector in enumerate(_read_vectors(file)):
        try:
            step = failed_step(vector)
        except UnreadableFile as error:
            raise UnreadableFile(f"vector {place} ({vector.id!r}): {error}") from error
        verdicts.append({"id": vector.id, "verdict": "accept" if step is None else "reject", "step": step})
    return verdicts


def failed_step(vector: Vector) -> str | None:
    """The step at which a vector fails, None if it's accepted.

    :raises UnreadableFile: a member is missing, or a root isn't one.
    """
    team_id, _, bundle_id = vector.app_id.partition(".")
    policy = Policy(
        team_id=team_id, bundle_ids=frozenset([bundle_id]), environment=vector.environment, roots=_roots(vector)
    )
    try:
        if vector.kind == "attestation":
            verify_attestation(
                _decoded(vector, "attestation_b64"),
                client_data_hash=_client_data_hash(vector, hashed="challenge_b64"),
                key_id=decode_key_id(_member(vector, "key_id_b64")),
                bundle_id=bundle_id,
                policy=policy,
                now=vector.valid_at or datetime.now(UTC),
            )
        else:
            verify_assertion(
                _decoded(vector, "assertion_b64"),
                client_data_hash=_client_data_hash(vector, hashed="client_data_b64"),
                public_key_x962=_decoded(vector, "public_key_x962_b64"),
                last_counter=vector.last_counter,
                bundle_id=bundle_id,
                policy=policy,
            )
    except AppAttestError as error:
        return error.step
    return None


def _roots(vector: Vector) -> tuple[x509.Certificate, ...]:
    try:
        return load_roots(apple_root_pem() if vector.root_pem is None else vector.root_pem.encode())
    except ValueError as error:
        raise UnreadableFile("root_pem holds no root certificate") from error


def _client_data_hash(vector: Vector, *, hashed: str) -> bytes:
    if vector.client_data_hash_b64 is not None:
        return _decoded(vector, "client_data_hash_b64")
    return hashlib.sha256(_decoded(vector, hashed)).digest()


def _decoded(vector: Vector, member: str) -> bytes:
    # An object over the verifier's limit must reach the verifier, which reports that
    return decode_base64(_member(vector, member), max_bytes=4 * MAX_ATTESTATION_BYTES)


def _member(vector: Vector, name: str) -> str:
    value = getattr(vector, name)
    if not isinstance(value, str):
        raise UnreadableFile(f"{name} is missing")
    return value


def _read_vectors(file: str) -> list[Vector]:
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        document = msgspec.json.decode(content, type=_Document)
        return [_converted(place, {**document.defaults, **vector}) for place, vector in enumerate(document.vectors)]
    except OSError as error:
        raise UnreadableFile(error.strerror or "not readable") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableFile(_one_line(error)) from error


def _converted(place: int, members: Mapping[str, Any]) -> Vector:
    try:
        return msgspec.convert(members, Vector)
    except msgspec.ValidationError as error:
        raise UnreadableFile(f"vector {place}: {_one_line(error)}") from error


class _Document(msgspec.Struct, frozen=True):
    vectors: list[dict[str, Any]]
    defaults: dict[str, Any] = {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
