"""The source of a request: the peer of the connection, or the client that trusted proxies forward for.

Anybody can write an ``X-Forwarded-For``. It counts only when the connection comes from a network of
``TRUSTED_PROXY_NETWORKS``, and only as many of its entries, from the right, as there are proxies (``TRUSTED_PROXIES``).
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable

from aiohttp import web

from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: Loopback, RFC 1918 and RFC 4193: the networks in which one's own proxies are.
PRIVATE_NETWORKS = ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
UNKNOWN = "unknown"

#: Reasons to ignore a forwarded header.
_REASONS = ("peer", "short", "malformed")
#: Seconds between two log lines of one kind.
_LOG_EVERY = 60.0
#: Clients behind one source within a minute that show a proxy, rather than one client's inventions.
_MANY = 50
_MOST_SOURCES = 256

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_log = logs.logger("proxies")


def parse_networks(texts: Iterable[str]) -> tuple[_Network, ...]:
    """:raises ValueError: one is neither an address nor a network in CIDR notation."""
    return tuple(ipaddress.ip_network(text) for text in texts)


class ProxyMetrics:
    """The metrics of all ports of a process."""

    def __init__(self, registry: Registry) -> None:
        self.ignored = registry.counter(
            "forwarded_ignored_total",
            "Forwarded headers passed over: from an untrusted peer, with too few hops, or malformed.",
            ("reason",),
        )
        self.ignored.preset_all(_REASONS)
        self.too_few = registry.counter(
            "trusted_proxies_too_few_total", "Sources that look like a proxy of many clients, once a minute each."
        )


class Proxies:
    """The proxies in front of one port."""

    def __init__(
        self, hops: int, networks: Iterable[str], metrics: ProxyMetrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        :param hops: the number of proxies; 0 = the peer is the client.
        :param networks: from which the last of them connects.
        """
        self._hops = hops
        self._networks = parse_networks(networks)
        self._clock = clock
        self._logged: dict[str, float] = {}
        self._minute = 0
        self._behind: dict[str, set[int]] = {}
        self._metrics = metrics

    def forwarded(self, request: web.Request) -> bool:
        """Whether a trusted proxy sent the request, so that the headers it adds can be believed."""
        return self._hops > 0 and self._is_proxy(request.remote)

    def client(self, request: web.Request) -> str:
        """The address of a request's client; ``unknown`` if the connection has none."""
        peer = request.remote or UNKNOWN
        if not self._hops:
            return peer
        values = request.headers.getall("X-Forwarded-For", [])
        if not values:
            return peer
        if not self._is_proxy(request.remote):
            self._ignore("peer", peer=peer)
            return peer
        hops = [hop for value in values for entry in value.split(",") if (hop := entry.strip())]
        if len(hops) < self._hops:
            self._ignore("short", peer=peer)
            return peer
        address = _without_port(hops[-self._hops])
        if not is_address(address):
            self._ignore("malformed", peer=peer)
            return peer
        if len(hops) > self._hops:
            self._count_behind(address, hops[-self._hops - 1])
        return address

    def _is_proxy(self, peer: str | None) -> bool:
        try:
            ip = ipaddress.ip_address(peer or "")
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self._networks if network.version == ip.version)

    def _ignore(self, reason: str, **more: str) -> None:
        self._metrics.ignored.inc(reason)
        if self._may_log(reason):
            _log.warning("forwarded_header_ignored", reason=reason, **more)

    def _count_behind(self, source: str, further: str) -> None:
        """Warn of a source with many different entries to its left: most likely a proxy that was not counted."""
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute = minute
            self._behind.clear()
        if source not in self._behind and len(self._behind) >= _MOST_SOURCES:
            return
        clients = self._behind.setdefault(source, set())
        if len(clients) >= _MANY:
            return
        clients.add(hash(further))
        if len(clients) == _MANY:
            self._metrics.too_few.inc()
            if self._may_log("too few"):
                _log.warning("trusted_proxies_too_low", address=source, clients_behind=_MANY)

    def _may_log(self, kind: str) -> bool:
        now = self._clock()
        if now - self._logged.get(kind, -_LOG_EVERY) < _LOG_EVERY:
            return False
        self._logged[kind] = now
        return True


PROXIES = web.AppKey("proxies", Proxies)


def client_address(request: web.Request) -> str:
    """The address of a request's client, as the proxies of its port report it."""
    return request.app[PROXIES].client(request)


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone's name can be anything


def _without_port(hop: str) -> str:
    """An address without the port that some proxies append: ``192.0.2.1:4711``, ``[2001:db8::1]:4711``."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
