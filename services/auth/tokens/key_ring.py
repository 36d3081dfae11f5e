"""The keys that sign access tokens: ES256 PEM files in one folder, such as a mounted secret.

A file's name is the time from which its key may sign (``20261124T083000Z.pem``); any other name means at once. The
newest key past its activation signs, and all of them are published, so that every gateway knows a key before it is
used. A key whose file is removed is withdrawn. Without any key nothing is signed: answers are 503, and readiness fails.

    KeyFault (ConfigurationError)      the folder or a file can't be used; names the file
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jose import jwk

from shared.domain import tokens
from shared.domain.service_types import ConfigurationError
from shared.domain.tokens import CLOCK_SKEW
from shared.errors import DependencyUnavailable
from shared.service import background
from shared.telemetry import logs
from shared.telemetry.metrics import Gauge, Registry

_NAME = re.compile(r"(\d{8}T\d{6}Z)\.pem")
_FORMAT = "%Y%m%dT%H%M%SZ"
#: Greatest difference between the clocks of the signing process and the checking gateway.
_SKEW = 2 * CLOCK_SKEW
_LOOK_EVERY, _LOOK_AT_MOST = 5.0, 1.0
_MAX_BYTES = 64 * 1024

_log = logs.logger("keys")


class KeyFault(ConfigurationError):
    """A signing key, or the folder of keys, can't be used."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key. ``activation`` is in seconds since the epoch; ``public`` its RFC 7517 form.

    ``header`` is the first segment of the tokens that it signs.
    """

    kid: str
    activation: float
    path: Path
    private: Any
    public: dict[str, str]
    header: str


class KeyRing:
    """The keys of a folder, read again whenever the folder changes."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        """:raises KeyFault: no usable key; names the file at fault."""
        self._folder, self._clock = folder, clock
        self._seen: object = None
        self._looked = float("-inf")
        self._reported: set[str] = set()
        self.keys: dict[str, SigningKey] = {}
        self.refresh(strict=True)

    def signing_key(self) -> SigningKey:
        """The key that signs now.

        :raises DependencyUnavailable: there is no key any more.
        """
        self._need_keys()
        now = self._clock()
        active = [key for key in self.keys.values() if key.activation <= now]
        if active:
            return max(active, key=_age)
        return min(self.keys.values(), key=_age)  # the first key of a deployment signs before its activation

    def find(self, kid: str) -> SigningKey | None:
        """The key of a kid. For an unknown kid the folder is read, since another process may have made the key.

        :raises DependencyUnavailable: there are no keys.
        """
        if kid not in self.keys and time.monotonic() - self._looked >= _LOOK_AT_MOST:
            self.refresh()
        self._need_keys()
        return self.keys.get(kid)

    def jwks(self) -> dict[str, Any]:
        """The RFC 7517 key set: all keys, active or not.

        :raises DependencyUnavailable: there are none any more.
        """
        self._need_keys()
        return {"keys": [key.public for key in sorted(self.keys.values(), key=_age, reverse=True)]}

    def running(self, registry: Registry) -> AbstractAsyncContextManager[None]:
        """Read the folder every few seconds, so that a new key needs no restart."""
        age = registry.gauge("signing_key_age_seconds", "For how long the key that signs has been doing so.")
        return background.running(registry, signing_keys=lambda: self._keep_looking(age))

    async def _keep_looking(self, age: Gauge) -> None:
        while True:
            self.refresh()
            if self.keys and (since := self.signing_key().activation):
                age.set(self._clock() - since)
            await asyncio.sleep(_LOOK_EVERY)

    def refresh(self, *, strict: bool = False) -> None:
        """Apply changes of the folder: new keys and removed ones.

        An unusable file is reported, and its earlier key is kept.

        :raises KeyFault: only when ``strict``.
        """
        self._looked = time.monotonic()
        faults: set[str] = set()
        try:
            seen = [(path.name, _status(path)) for path in key_files(self._folder)]
            if seen == self._seen:
                return
            found: dict[str, SigningKey] = {}
            for path in key_files(self._folder):
                try:
                    key = load_key(path)
                except KeyFault as fault:
                    if strict:
                        raise
                    faults.add(str(fault))
                    if path.exists():
                        found.update((kid, known) for kid, known in self.keys.items() if known.path == path)
                else:
                    found[key.kid] = key
            if not found and strict:
                raise KeyFault(self._empty)
            self._take(found)
            self._seen = None if faults else seen  # a half-written file is read again
        except KeyFault as fault:
            if strict:
                raise
            faults.add(str(fault))
            if isinstance(fault.__cause__, FileNotFoundError) and not self._folder.exists():
                self._take({})
        for reason in sorted(faults - self._reported):
            _log.error("signing_key_unusable", reason=reason)
        self._reported = faults

    @property
    def _empty(self) -> str:
        return f"MLPA_SIGNING_KEYS_DIR: {self._folder}: there is no key (*.pem); see mlpa keys rotate"

    def _take(self, found: dict[str, SigningKey]) -> None:
        if self.keys and not found:
            _log.critical("no_signing_key", reason=self._empty)
        self.keys = found

    def _need_keys(self) -> None:
        if not self.keys:
            raise DependencyUnavailable("signing_key")


KEY_RING = web.AppKey("key_ring", KeyRing)


def _age(key: SigningKey) -> tuple[float, str]:
    return key.activation, key.path.name


def key_files(folder: Path) -> list[Path]:
    """:raises KeyFault: it can't be used."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".pem" and not path.name.startswith("."))
    except OSError as error:
        raise KeyFault(f"MLPA_SIGNING_KEYS_DIR: {folder}: {error.strerror}") from error


def _status(path: Path) -> tuple[int, ...] | None:
    """A value that changes with the file."""
    try:
        status = path.stat()
    except OSError:  # a dangling link: ``load_key`` reports it
        return None
    return status.st_ctime_ns, status.st_mtime_ns, status.st_ino, status.st_size


def load_key(path: Path) -> SigningKey:
    """:raises KeyFault: naming the file."""
    try:
        with path.open("rb") as file:
            mode, pem = os.fstat(file.fileno()).st_mode, file.read(_MAX_BYTES)
        if mode & stat.S_IRWXO:
            raise KeyFault(
                f"{path}: the private key is open to everybody (mode {stat.S_IMODE(mode):04o}); use 0440 or less"
            )
        private = serialization.load_pem_private_key(pem, password=None)
    except OSError as error:
        raise KeyFault(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFault(f"{path}: not a PEM private key without a password") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise KeyFault(f"{path}: not a P-256 key")
    numbers = private.public_key().public_numbers()
    x, y = (tokens.encode_segment(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    kid = thumbprint(x, y)
    public = {"kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "sig", "alg": "ES256", "kid": kid}
    header = tokens.encode_segment(json.dumps({"alg": "ES256", "typ": tokens.TYPE, "kid": kid}).encode())
    return SigningKey(kid, activation(path), path, jwk.construct(_pem(private), "ES256"), public, header)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def activation(path: Path) -> float:
    """The time from which a file's key may sign, in seconds since the epoch."""
    try:
        if match := _NAME.fullmatch(path.name):
            return datetime.strptime(match[1], _FORMAT).replace(tzinfo=UTC).timestamp()
    except ValueError:
        pass
    return 0.0


def thumbprint(x: str, y: str) -> str:
    """RFC 7638: the SHA-256 of the required members in lexicographic order."""
    canonical = json.dumps({"crv": "P-256", "kty": "EC", "x": x, "y": y}, separators=(",", ":"), sort_keys=True)
    return tokens.encode_segment(hashlib.sha256(canonical.encode()).digest())


def create_key(folder: Path, *, activate_at: float) -> Path:
    """Make a key file atomically, private to its owner.

    :raises KeyFault: it can't be used.
    """
    name = datetime.fromtimestamp(activate_at, UTC).strftime(_FORMAT)
    path = folder / f"{name}.pem"
    partial = folder / f".{name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
            file.write(_pem(ec.generate_private_key(ec.SECP256R1())))
        os.link(partial, path)
    except OSError as error:
        raise KeyFault(f"{path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def ensure_key(folder: Path) -> None:
    """A first key in an empty folder, for local runs; of several processes that start together, only one makes it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not key_files(folder):
            create_key(folder, activate_at=time.time())


def prunable(keys: list[SigningKey], *, now: float, token_ttl: int) -> list[SigningKey]:
    """The keys that no valid token can carry: those replaced for longer than a token lives."""
    ordered = sorted(keys, key=_age)
    active = [key for key in ordered if key.activation <= now]
    return [key for key, successor in pairwise(active) if successor.activation + token_ttl + _SKEW < now]
