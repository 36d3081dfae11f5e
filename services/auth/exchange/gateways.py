"""Gateways that exchange credentials for their clients, known by a secret in a header field."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from aiohttp import web

from shared.domain.tokens import CLIENT_HEADER, EXCHANGE_KEY_HEADER
from shared.service.proxies import client_address, is_address


class KnownGateways:
    """The gateways that auth knows.

    :param keys: the accepted secrets: several, so that one can be replaced; none, if no gateway may exchange.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = list(keys)

    def sent(self, request: web.Request) -> bool:
        """Whether a gateway sent the request."""
        given = request.headers.getall(EXCHANGE_KEY_HEADER, [])
        if len(given) != 1:
            return False
        key = given[0].encode("utf-8", "surrogateescape")
        good = [hmac.compare_digest(key, one) for one in self._keys]  # all, so that the time shows nothing
        return any(good)

    def source(self, request: web.Request) -> str:
        """The address of the client for which a request is made."""
        if self.sent(request):
            given = request.headers.getall(CLIENT_HEADER, [])
            if len(given) == 1 and is_address(given[0]):
                return given[0]
        return client_address(request)


KNOWN_GATEWAYS = web.AppKey("known_gateways", KnownGateways)
