"""The digests under which records of erased identities are kept.

A digest is an HMAC with ``ERASURE_SECRET``, so that nobody who reads the records can tell whose they are, and an
identity that comes back is recognised. It has the shard of its identity, and names the kind of credential: sums by
shard and by kind stay what they were.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from itertools import count

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.domain.identity import Credential, shard

#: The start of every digest; no identity begins so.
PREFIX = "erased."
_NONCE = 12


class Digests:
    """The digests of identities, by one secret or several."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """:param secrets: the first makes digests; those of the others are recognised."""
        self._secrets = list(secrets)

    def of(self, identity: str) -> str:
        """The digest of an identity."""
        return _digest(self._secrets[0], identity)

    def all(self, identity: str) -> list[str]:
        """The digests that records of an identity may have."""
        return [_digest(secret, identity) for secret in self._secrets]

    def seal(self, identity: str) -> bytes:
        """An identity, encrypted."""
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(_key(self._secrets[0])).encrypt(nonce, identity.encode(), None)

    def unseal(self, sealed: bytes) -> str | None:
        """What was sealed; None if none of the secrets did it."""
        for secret in self._secrets:
            try:
                return AESGCM(_key(secret)).decrypt(sealed[:_NONCE], sealed[_NONCE:], None).decode()
            except InvalidTag:
                continue
        return None


def _digest(secret: bytes, identity: str) -> str:
    # The two kinds that App Attest has prove the same identities
    kind = Credential.of(identity) or "other"
    mac, wanted = hmac.new(secret, identity.encode(), "sha256"), shard(identity)
    for number in count():
        one = mac.copy()
        one.update(b"\0%d" % number)
        if shard(text := f"{PREFIX}{kind}.{one.hexdigest()}") == wanted:
            return text
    raise AssertionError("unreachable")


def _key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"\0sealed identities", "sha256")
