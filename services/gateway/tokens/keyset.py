"""Auth's public keys, found through the issuer's metadata: EC, for our access tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import aiohttp
import msgspec
from jose import jwk
from jose.backends.base import Key

from shared.service import fetch, keyset
from shared.service.fetch import NoAnswer
from shared.service.keyset import KeySet
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: Seconds between readings, from a failed one to the next, and between two for kids that the set lacks.
REFRESH = 60.0
RETRY = 2.0
UNKNOWN_KID = 5.0
_TIMEOUT = 2.0
_MAX_BYTES = 256 * 1024

_log = logs.logger("keyset")


class _Jwk(msgspec.Struct, frozen=True):
    kty: Literal["EC"]
    crv: Literal["P-256"]
    kid: str
    x: str
    y: str
    alg: Literal["ES256"] = "ES256"
    use: Literal["sig"] = "sig"


class _Metadata(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str


def key_set(
    session: aiohttp.ClientSession,
    registry: Registry,
    *,
    issuer: str,
    jwks_url: str | None,
    clock: Callable[[], float] = time.monotonic,
) -> KeySet:
    """The keys of an issuer.

    :param jwks_url: their URL; None to read it from the issuer's metadata.
    """
    readings = registry.counter("jwks_fetches_total", "Readings of auth's key set.", ("result",))
    readings.preset_all(["success", "error"])

    def on_read(failure: str | None) -> None:
        readings.inc("error" if failure else "success")
        if failure is not None:
            _log.warning("key_set_not_read", reason=failure)

    return KeySet(
        partial(_read, session, issuer, jwks_url),
        partial(keyset.parse, construct=_construct),
        dependency="auth",
        refresh=REFRESH,
        retry=(RETRY,),
        unknown_kid=UNKNOWN_KID,
        clock=clock,
        age=registry.gauge(
            "jwks_age_seconds", "Age of the key set that tokens are checked with; -1 before there is one."
        ),
        on_read=on_read,
        on_drop=lambda: _log.error("key_set_dropped"),
    )


async def _read(session: aiohttp.ClientSession, issuer: str, jwks_url: str | None) -> bytes:
    """The body of the key set.

    :raises NoAnswer: it can't be read.
    :raises ValueError: the metadata is malformed.
    """
    protected = False
    if jwks_url is None:
        jwks_url = await _discover(session, issuer)
        protected = issuer.startswith("https:")  # then the keys must be, too
    return await fetch.get(session, jwks_url, limit=_MAX_BYTES, timeout=_TIMEOUT, https_only=protected)


async def _discover(session: aiohttp.ClientSession, issuer: str) -> str:
    """RFC 8414 section 3.3: the metadata must be the issuer's own.

    :raises NoAnswer: it can't be read.
    :raises ValueError: it is malformed, or another issuer's.
    """
    url = f"{issuer.rstrip('/')}/.well-known/oauth-authorization-server"
    body = await fetch.get(session, url, limit=_MAX_BYTES, timeout=_TIMEOUT)
    try:
        metadata = msgspec.json.decode(body, type=_Metadata)
    except RecursionError as error:
        raise NoAnswer("malformed") from error
    if metadata.issuer != issuer:
        raise ValueError("the metadata is another issuer's")
    return metadata.jwks_uri


def _construct(raw: msgspec.Raw) -> tuple[str, Key]:
    key = msgspec.json.decode(raw, type=_Jwk)
    if not key.kid:
        raise ValueError("a key without a name")
    return key.kid, jwk.construct({"kty": "EC", "crv": "P-256", "x": key.x, "y": key.y, "alg": "ES256"}, "ES256")
