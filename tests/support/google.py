"""Google's stand-in, and the settings of an auth that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import rsa

from services.local.play import CERTIFICATE, KEY_FILE, PACKAGE, StandIn


@cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@asynccontextmanager
async def google(folder: Path) -> AsyncIterator[tuple[StandIn, dict[str, Any]]]:
    """The stand-in as it serves, and settings.

    :param folder: for the service account's key.
    """
    stand_in = StandIn(_key())
    async with TestServer(stand_in.app()) as server:
        url = str(server.make_url("")).rstrip("/")
        path = folder / KEY_FILE
        path.write_text(stand_in.service_account(url))
        yield (
            stand_in,
            {
                "play_packages": PACKAGE,
                "play_certificates": CERTIFICATE,
                "play_credentials": path,
                "play_base_url": url,
                "play_limit_per_source": 0,
                "exchange_limit_per_source": 0,
            },
        )
