"""The servers of a ``postgresql://`` URL, as libpq reads it, for services, migrations and tools alike.

Several hosts are tried in their order. The asynchronous driver can't do that itself: libpq changes the socket between
two hosts, and looks names up in the foreground, which would stop the event loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from itertools import zip_longest
from urllib.parse import urlsplit

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

SCHEMES = ("postgresql://", "postgres://")
#: The state that a session must have, since each request writes.
_SESSIONS = ("any", "read-write", "primary")
DEFAULT_PORT = "5432"


def check(url: str) -> None:
    """
    :raises ValueError: libpq can't use the URL, or would read a part of the password as something else. The message
        quotes none of it.
    """
    if not url.startswith(SCHEMES):
        raise ValueError("must be a postgresql:// URL")
    try:
        fields = parse_dsn(url)
    except psycopg2.Error:
        raise ValueError("must be a postgresql:// URL; special characters of a password are percent-encoded") from None
    hosts, ports = _list(fields, "host"), _list(fields, "port")
    if "@" in fields.get("host", "") + fields.get("dbname", "") or "@" in urlsplit(url).path:
        raise ValueError("must be a postgresql:// URL; special characters of a password are percent-encoded")
    if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports if port):
        raise ValueError("has a port that is not a number from 1 to 65535")
    if len(ports) > 1 and len(ports) != len(hosts):
        raise ValueError("has as many ports as hosts, or one for all")
    if fields.get("target_session_attrs", "any") not in _SESSIONS:
        raise ValueError(f"target_session_attrs must be one of {', '.join(_SESSIONS)}, since MLPA writes")
    if "options" in fields:
        raise ValueError("must not set options, which poolers refuse: ALTER ROLE ... SET does the same")


def _list(fields: dict[str, str], name: str) -> list[str]:
    return fields[name].split(",") if fields.get(name) else []


async def resolve(url: str) -> list[str]:
    """Connection strings, one for each address that the URL names, in the order in which they are to be tried.

    :raises OSError: no host's name could be looked up.
    """
    fields = parse_dsn(url)
    places: list[str] = []
    fault: OSError | None = None
    for host, address, port in _hosts(fields):
        try:
            addresses = [address] if address or not host or host.startswith("/") else await _look_up(host, port)
        except OSError as error:
            fault = OSError(error.errno, f"could not look up {host!r}: {error.strerror}")
            continue
        for one in addresses:
            place = {"host": host, "hostaddr": one, "port": port}
            places.append(make_dsn(**{**fields, **{name: value or None for name, value in place.items()}}))
    if not places and fault is not None:
        raise fault
    return places


def _hosts(fields: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    hosts, addresses, ports = _list(fields, "host"), _list(fields, "hostaddr"), _list(fields, "port")
    count = max(len(hosts), len(addresses), 1)
    if len(ports) <= 1:
        ports = [*ports, DEFAULT_PORT][:1] * count
    for host, address, port in zip_longest(hosts or [""] * count, addresses, ports[:count], fillvalue=""):
        yield host, address, port or DEFAULT_PORT


async def _look_up(host: str, port: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
