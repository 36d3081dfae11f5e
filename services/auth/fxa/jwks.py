"""FxA's public keys: RSA, for its JWT access tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from jose import jwk
from jose.backends.base import Key

from services.auth.fxa.http import FxAClient
from services.auth.fxa.metrics import FxAMetrics
from services.auth.fxa.models import FxAConfig, Kid
from shared.domain.tokens import decode_bytes
from shared.service import keyset
from shared.service.keyset import KeySet
from shared.telemetry import logs

MODULUS_BITS = range(2048, 4096 + 1)
#: With a longer exponent, one verification would take milliseconds.
EXPONENT_BITS = 32
#: Part of the greatest age at which the next reading is due.
REFRESH_AT = 0.8
RETRY = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)

_log = logs.logger("fxa")


class _Jwk(msgspec.Struct, frozen=True):
    kty: Literal["RSA"]
    kid: Kid
    n: Annotated[str, msgspec.Meta(max_length=1024)]
    e: Annotated[str, msgspec.Meta(max_length=8)]
    alg: Literal["RS256"] = "RS256"
    use: Literal["sig"] = "sig"


def parse_key_set(body: bytes) -> dict[str, Key]:
    """The RSA keys of 2048 bits or more that are for RS256 signatures, by ``kid``.

    :raises ValueError: not a key set, or none that is usable.
    """
    return keyset.parse(body, _construct)


def key_set(client: FxAClient, config: FxAConfig, *, clock: Callable[[], float], metrics: FxAMetrics) -> KeySet:
    """FxA's keys."""

    def on_read(failure: str | None) -> None:
        if failure is not None:
            metrics.failures.inc("jwks", failure)
            _log.warning("fxa_key_set_not_fetched", reason=failure, kept=len(keys))

    keys = KeySet(
        client.key_set,
        parse_key_set,
        dependency="fxa",
        refresh=config.jwks_max_age * REFRESH_AT,
        retry=RETRY,
        unknown_kid=config.unknown_kid_interval,
        clock=clock,
        age=metrics.jwks_age,
        on_read=on_read,
        on_drop=lambda: _log.error("fxa_key_set_dropped"),
        kept=config.jwks_kept,
    )
    return keys


def _construct(raw: msgspec.Raw) -> tuple[str, Key]:
    entry = msgspec.json.decode(raw, type=_Jwk)
    n, e = (int.from_bytes(decode_bytes(text)) for text in (entry.n, entry.e))
    if n.bit_length() not in MODULUS_BITS or not 3 <= e < 2**EXPONENT_BITS or not n & e & 1:
        raise ValueError("key out of bounds")
    return entry.kid, jwk.construct({"kty": "RSA", "n": entry.n, "e": entry.e}, "RS256")
