"""A hostile client as a process of its own, so that it is in the way of the services and not of who measures them.

Twenty connections send the same bytes, again and again, as fast as they are answered. Run as a program it reads one
``Order`` as JSON from standard input, and prints how many answers of each status it got.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from urllib.parse import quote, urlencode

from shared.domain.tokens import ACCESS_TOKEN_TYPE, GRANT_TYPE  # the program has to start quickly

CONNECTIONS = 20
MEGABYTE = 1024 * 1024
_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3}) ")
#: Seconds that one answer is waited for.
_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is sent to ``service``; ``hold`` keeps each connection open afterwards, whatever is answered."""

    service: str
    data: str  # base64
    hold: bool = False


def _order(service: str, data: bytes, *, hold: bool = False) -> Order:
    return Order(service, base64.b64encode(data).decode(), hold)


def _request(method: str, path: str, body: bytes = b"", *, close: bool = True, **fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: mlpa", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _chat(body: bytes, token: str, **options: str) -> bytes:
    fields = {"Content_Type": "application/json", "Authorization": f"Bearer {token}", **options}
    return _request("POST", "/v1/chat/completions", body, **fields)


def _form(path: str, **fields: str) -> bytes:
    return _request("POST", path, urlencode(fields).encode(), Content_Type="application/x-www-form-urlencoded")


def _million_items(token: str) -> bytes:
    items = b"[" + b"0," * 1_000_000 + b"0]"
    return _chat(b'{"model":"double","messages":[{"role":"user","content":"Hi"}],"tools":%b}' % items, token)


def _pipelined(token: str) -> bytes:
    hi = b'{"model":"slow","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
    fields = {"Content_Type": "application/json", "Authorization": f"Bearer {token}"}
    return b"".join(
        _request("POST", "/v1/chat/completions", body, close=False, **fields) for body in (hi, b" " * 2 * MEGABYTE)
    )


def _bomb() -> bytes:
    """Three gigabytes of zeros, a block for each megabyte."""
    packer = zlib.compressobj(wbits=31)
    first, again = (packer.compress(b"\0" * MEGABYTE) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return (first + again * 3000)[: 3 * MEGABYTE - 1000]


_HEAD = b"POST /%b HTTP/1.1\r\nHost: mlpa\r\n"
_FIELDS = b"".join(b"X-%d: %b\r\n" % (number, b"y" * 38_000) for number in range(126))
_GARBAGE = {"grant_type": GRANT_TYPE, "subject_token_type": ACCESS_TOKEN_TYPE, "scope": "ai"}

#: Each attack by its name, made from a token that passes the gateway's door.
ATTACKS: dict[str, Callable[[str], Order]] = {
    "gzip to auth": lambda _: _order("auth-1", _request("POST", "/token", _bomb(), Content_Encoding="gzip")),
    "gzip to the gateway": lambda _: _order("gateway-1", _chat(_bomb(), "x", Content_Encoding="gzip")),
    "gzip with a token": lambda token: _order("gateway-1", _chat(_bomb(), token, Content_Encoding="gzip")),
    "a million items": lambda token: _order("gateway-1", _million_items(token)),
    "a million items without a token": lambda _: _order("gateway-1", _million_items("x")),
    "unfinished heads to auth": lambda _: _order("auth-1", _HEAD % b"token" + _FIELDS, hold=True),
    "unfinished heads to the gateway": lambda _: _order("gateway-1", _HEAD % b"v1/models" + _FIELDS, hold=True),
    "pipelined bodies": lambda token: _order("gateway-1", _pipelined(token), hold=True),
    "garbage exchanges": lambda _: _order("auth-1", _form("/token", **_GARBAGE, subject_token="x" * 3000)),
    "invented FxA tokens": lambda _: _order("auth-1", _form("/token", **_GARBAGE, subject_token="ab" * 32)),
    "wrong admin keys": lambda _: _order("auth-1", _request("GET", "/user", Authorization="Bearer wrong-key")),
    "sign-ins": lambda _: _order("auth-1", _form("/admin/sign-in", csrf="a", key="wrong-key")),
    "revocations": lambda token: _order("auth-1", _form("/revoke", token=token[:-8] + quote("AAAAAAAA"))),
    "scrapes of auth": lambda _: _order("auth-1", _request("GET", "/metrics")),
    "scrapes of the gateway": lambda _: _order("gateway-1", _request("GET", "/metrics")),
}


async def _once(port: int, order: Order, data: bytes, until: float) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(_PATIENCE):
            writer.write(data)
            answer = await reader.read(MEGABYTE)
            while not order.hold and await reader.read(MEGABYTE):
                pass
            if order.hold:
                await asyncio.sleep(max(0.0, until - time.monotonic()))
    except (ConnectionError, TimeoutError) as error:
        return type(error).__name__
    finally:
        writer.transport.abort()
    found = _STATUS.search(answer)
    return found[1].decode() if found else "closed"


async def _attack(port: int, order: Order, seconds: float) -> Counter[str]:
    data, until = base64.b64decode(order.data), time.monotonic() + seconds
    seen: Counter[str] = Counter()

    async def again() -> None:
        while time.monotonic() < until:
            seen[await _once(port, order, data, until)] += 1

    await asyncio.gather(*(again() for _ in range(CONNECTIONS)))
    return seen


def input_of(order: Order, port: int, seconds: float) -> bytes:
    """What the program reads."""
    return json.dumps({"order": asdict(order), "port": port, "seconds": seconds}).encode()


if __name__ == "__main__":
    os.nice(10)  # the services and who measures them share the machine with it
    given = json.load(sys.stdin)
    counts = asyncio.run(_attack(given["port"], Order(**given["order"]), given["seconds"]))
    print(", ".join(f"{status}: {number}" for status, number in sorted(counts.items())))
