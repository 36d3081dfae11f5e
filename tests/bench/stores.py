"""The stores of a measurement, and the settings of its gateways."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from services.auth.tokens.issuer import Issuer
from services.auth.tokens.key_ring import KeyRing, ensure_key
from services.local.postgres import PostgresServer
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.stores import migrate


class Stores(NamedTuple):
    """A folder, the servers, and the URL of a database with the newest schema."""

    folder: Path
    valkey: ValkeyServer
    postgres: PostgresServer
    database: str


@contextmanager
def stores() -> Iterator[Stores]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user
        with (
            ValkeyServer(folder / "valkey", free_port()) as valkey,
            PostgresServer(folder / "postgres", free_port(), durable=False) as postgres,
        ):
            database = postgres.create_database("bench")
            migrate.upgrade(database)
            yield Stores(folder, valkey, postgres, database)


def gateway_settings(
    folder: Path, service_types: str, *, database: str, redis: str, upstream: int
) -> tuple[Issuer, dict[str, str]]:
    """The issuer of access tokens, and the environment of gateways that take them.

    :param upstream: the port of ``tests.bench.relay.upstream``, which has the key set of ``folder / "jwks"``.
    """
    issuer, url = "http://127.0.0.1:1", f"http://127.0.0.1:{upstream}"
    ensure_key(folder / "keys")
    keys = KeyRing(folder / "keys")
    (folder / "jwks").write_bytes(msgspec.json.encode(keys.jwks()))
    (folder / "types.toml").write_text(service_types)
    environment = {
        **os.environ,
        "DATABASE_URL": database,
        "REDIS_URL": redis,
        "SERVICE_TYPES": str(folder / "types.toml"),
        "MLPA_ISSUER": issuer,
        "MLPA_JWKS_URL": f"{url}/jwks",
        "MLPA_VIRTUAL_KEY": "sk-bench",
        "LITELLM_API_BASE": url,
        "LOG_FORMAT": "json",
        "MAX_OPEN_REQUESTS": "4000",
    }
    return Issuer(keys, issuer=issuer, ttl=3600), environment
