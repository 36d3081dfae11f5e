"""The admin keys, which open the API of user management and the console: named, with roles, known by their digests."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal, get_args

from aiohttp import web
from pydantic import SecretStr

from services.auth.settings import AuthSettings
from shared.domain.service_types import ConfigurationError
from shared.service.strength import trivial_digests
from shared.telemetry import logs

Role = Literal["admin", "viewer"]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
#: How many days ahead the end of a key is announced.
_WARN_DAYS = 14

_log = logs.logger("users")


def _today() -> date:
    return datetime.now(UTC).date()


@dataclass(frozen=True, slots=True)
class AdminKey:
    """A named key. ``digest`` is its SHA-256; the key itself is kept nowhere. ``until`` is its last day, in UTC."""

    name: str
    role: Role
    digest: bytes
    until: date | None = None

    @property
    def may_change(self) -> bool:
        return self.role == "admin"


class AdminKeys:
    """The keys of this deployment. Empty: there is neither API nor console."""

    def __init__(self, keys: Iterable[AdminKey], *, today: Callable[[], date] = _today) -> None:
        self._keys = tuple(keys)
        self._today = today
        self._warned: dict[str, date] = {}
        for key in self._keys:
            self._is_good(key)

    @classmethod
    def from_settings(cls, settings: AuthSettings) -> AdminKeys:
        """
        :raises ConfigurationError: naming the variable that is malformed, the name or key that is repeated, or
            the key that anybody would try first.
        """
        found: list[tuple[str, AdminKey]] = []
        if settings.mlpa_admin_keys is not None:
            for number, entry in enumerate(settings.mlpa_admin_keys.get_secret_value().split(","), start=1):
                if entry.strip():
                    found.append(("MLPA_ADMIN_KEYS", _parse(entry.strip(), number)))
        in_the_clear: list[tuple[str, str, Role, SecretStr | None]] = [
            ("MLPA_ADMIN_KEY", "admin", "admin", settings.mlpa_admin_key),
            ("MLPA_UI_ACCESS_KEY", "ui", "viewer", settings.mlpa_ui_access_key),
        ]
        for variable, name, role, secret in in_the_clear:
            if secret is not None:
                digest = hashlib.sha256(secret.get_secret_value().encode()).digest()
                found.append((variable, AdminKey(name, role, digest)))
        names: set[str] = set()
        digests: set[bytes] = set()
        words = [*(key.name for _, key in found), *settings.development.values()]
        trivial = frozenset() if settings.mlpa_debug else trivial_digests(words)
        for variable, key in found:
            if key.digest in trivial:
                raise ConfigurationError(
                    f"{variable}: the key named {key.name!r} is empty, or one that anybody would try first"
                )
            if key.name in names:
                raise ConfigurationError(f"{variable}: there are two keys named {key.name!r}")
            if key.digest in digests:
                raise ConfigurationError(f"{variable}: the key named {key.name!r} is the same as another one")
            names.add(key.name)
            digests.add(key.digest)
        return cls(key for _, key in found)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, secret: str) -> AdminKey | None:
        """The key that a caller presents, if it is one of these. The time taken doesn't depend on the result."""
        digest = hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found if found is not None and secret and self._is_good(found) else None

    def named(self, name: str) -> AdminKey | None:
        """The key of a name, unless its end date has passed."""
        return next((key for key in self._keys if key.name == name and self._is_good(key)), None)

    def _is_good(self, key: AdminKey) -> bool:
        """Whether the key may be used today. Its end is announced in the log once a day."""
        if key.until is None:
            return True
        today = self._today()
        days = (key.until - today).days
        if days <= _WARN_DAYS and self._warned.get(key.name) != today:
            self._warned[key.name] = today
            _log.warning("admin_key_ends", key=key.name, until=key.until.isoformat(), days=days)
        return days >= 0


ADMIN_KEYS = web.AppKey("admin_keys", AdminKeys)


def _parse(entry: str, number: int) -> AdminKey:
    name, _, rest = entry.partition(":")
    role, _, rest = rest.partition(":")
    digest = rest.partition(":")[0]
    # the entry itself is not shown: somebody may have written the key instead of its digest
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"MLPA_ADMIN_KEYS: entry {number} must be name:role:sha256hex, or name:role:sha256hex:YYYY-MM-DD"
        )
    if role not in get_args(Role):
        raise ConfigurationError(f"MLPA_ADMIN_KEYS: the role of entry {number} must be admin or viewer")
    if not _DIGEST.fullmatch(digest):
        raise ConfigurationError(
            f"MLPA_ADMIN_KEYS: entry {number} must have a SHA-256 digest, 64 hex characters, after its role"
        )
    return AdminKey(name, "admin" if role == "admin" else "viewer", bytes.fromhex(digest), _end(rest, number))


def _end(rest: str, number: int) -> date | None:
    _, colon, text = rest.partition(":")
    if not colon:
        return None
    try:
        if not _DATE.fullmatch(text):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"MLPA_ADMIN_KEYS: the end date of entry {number} must be a day as YYYY-MM-DD"
        ) from None
