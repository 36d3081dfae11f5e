"""The signing keys of the FxA stand-in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwk
from jose.backends.base import Key

from services.local.files import write_private
from services.local.pki import key_to_pem


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One RSA key. ``kid`` is made as FxA's: the day, and eight digits of the public key's digest."""

    kid: str
    pem: str
    private: Key = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        key = rsa.generate_private_key(65537, 2048)
        public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
        digest = hashlib.sha256(public).hexdigest()
        return cls.load(f"{datetime.now(UTC):%Y%m%d}-{digest[:8]}", key_to_pem(key))

    @classmethod
    def load(cls, kid: str, pem: str) -> Self:
        return cls(kid, pem, jwk.construct(pem, "RS256"))

    def public(self) -> dict[str, Any]:
        created = datetime.strptime(self.kid[:8], "%Y%m%d").replace(tzinfo=UTC)
        return {
            **self.private.public_key().to_dict(),
            "kid": self.kid,
            "use": "sig",
            "fxa-createdAt": int(created.timestamp()),
        }


class KeyRing:
    """Three keys: the previous one, the signing one, and the next one, which is published before it is used."""

    def __init__(self, keys: Sequence[SigningKey], folder: Path | None = None) -> None:
        self._keys = list(keys)
        self._file = folder / "fxa-keys.json" if folder else None

    @classmethod
    def open(cls, folder: Path | None = None) -> Self:
        """The keys of a folder, made there when it has none; without a folder, new ones that are kept nowhere."""
        ring = cls((), folder)
        if ring._file is not None and ring._file.exists():
            ring._keys = [SigningKey.load(kid, pem) for kid, pem in msgspec.json.decode(ring._file.read_bytes())]
        else:
            ring._keys = [SigningKey.generate() for _ in range(3)]
            ring.save()
        return ring

    @property
    def signing(self) -> SigningKey:
        return self._keys[1]

    def rotate(self) -> None:
        self._keys = [*self._keys[1:], SigningKey.generate()]
        self.save()

    def published(self) -> list[dict[str, Any]]:
        last, *used = self._keys
        return [key.public() for key in (*used, last)]

    def public_key(self, kid: str) -> Key | None:
        return next((key.private.public_key() for key in self._keys if key.kid == kid), None)

    def save(self) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._file, msgspec.json.encode([(key.kid, key.pem) for key in self._keys]).decode())
