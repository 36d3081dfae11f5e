"""Keys that some service types need beside the user's credential, for clients that are not public."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping

from aiohttp import web

from services.gateway.errors import Forbidden
from services.gateway.settings import GatewaySettings
from shared.domain.service_types import ConfigurationError, ServiceType, ServiceTypes
from shared.service.strength import trivial_digests

FIELD = "x-dev-authorization"
_ENTRY = re.compile(r"([a-z0-9][a-z0-9_-]{0,31}):([0-9a-fA-F]{64})")


class ClientKeys:
    """The keys of ``CLIENT_KEYS`` by their names, known by SHA-256."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = dict(digests)
        self.names = frozenset(digests)

    @classmethod
    def parse(cls, text: str, rows: Iterable[ServiceType], *, debug: bool) -> ClientKeys:
        """
        :param text: ``name:sha256hex``, comma-separated.
        :param rows: the rows whose keys must be there.
        :raises ConfigurationError: an entry is malformed, or one is missing; no entry is quoted.
        """
        digests: dict[str, bytes] = {}
        for number, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
            found = _ENTRY.fullmatch(entry)
            if found is None:
                raise ConfigurationError(f"CLIENT_KEYS: entry {number} must be name:sha256hex")
            if found[1] in digests:
                raise ConfigurationError(f"CLIENT_KEYS: there are two keys named {found[1]!r}")
            digests[found[1]] = bytes.fromhex(found[2])
        trivial = frozenset() if debug else trivial_digests(digests)
        for name, digest in digests.items():
            if digest in trivial:
                raise ConfigurationError(
                    f"CLIENT_KEYS: the key named {name!r} is empty, or one that anybody would try first"
                )
        for row in rows:
            if row.client_key is not None and row.client_key not in digests:
                raise ConfigurationError(
                    f"CLIENT_KEYS: there is no key named {row.client_key!r}, which service type {row.name!r} needs"
                )
        return cls(digests)

    def check(self, request: web.Request, name: str) -> None:
        """:raises Forbidden: the request lacks the key of this name."""
        given = request.headers.getall(FIELD, [])
        digest = hashlib.sha256(given[0].encode(errors="surrogateescape")).digest() if len(given) == 1 else b""
        if not hmac.compare_digest(digest, self._digests.get(name, bytes(32))):
            raise Forbidden(f"This service type needs the client key in {FIELD}.")


def configured(settings: GatewaySettings, service_types: ServiceTypes) -> ClientKeys:
    """The keys of the settings. A table that is read later can need no others.

    :raises ConfigurationError: as ``ClientKeys.parse``.
    """
    text = settings.client_keys.get_secret_value() if settings.client_keys else ""
    keys = ClientKeys.parse(text, service_types.by_name.values(), debug=settings.mlpa_debug)
    service_types.client_keys = keys.names
    return keys


CLIENT_KEYS = web.AppKey("client_keys", ClientKeys)
