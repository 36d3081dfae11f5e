"""Bytes that are not text, wherever a request may hold them, get the documented 4xx and never a 5xx."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.services.auth.admin.conftest import ADMIN_SETTINGS, Rows
from tests.services.auth.conftest import Auth, StartAuth

_FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
_SIGN_IN = b"csrf=x&key=y"


async def raw(auth: Auth, head: bytes, body: bytes = b"") -> int:
    """The status of the answer to these very bytes."""
    parts = urlsplit(auth.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        length = f"Host: auth\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        writer.write(head + length + body)
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


@pytest.fixture
async def auth(start_auth: StartAuth) -> Auth:
    return await start_auth(**ADMIN_SETTINGS, trusted_proxies=1)


@pytest.fixture
def rows(postgres_url: str) -> Iterator[Rows]:
    rows = Rows(postgres_url)
    yield rows
    rows.close()


async def test_a_cookie_of_any_bytes(auth: Auth) -> None:
    for value in [b"\xff", b"\xc3", b'"\\377"', b"\xff" * 43]:
        for name in (b"mlpa_sign_in", b"mlpa_admin"):
            cookie = b"Cookie: " + name + b"=" + value + b"\r\n"
            assert await raw(auth, b"POST /admin/sign-in HTTP/1.1\r\n" + _FORM + cookie, _SIGN_IN) == 403, value
            assert await raw(auth, b"GET /admin/sign-in HTTP/1.1\r\n" + cookie) == 200, value
            assert await raw(auth, b"GET /admin HTTP/1.1\r\n" + cookie) == 303, value


async def test_a_hop_of_any_bytes(auth: Auth, rows: Rows) -> None:
    for times, hop in enumerate((b"\xff", b"192.0.2.1\xff", b"fe80::1%\xff", b"unknown", b"1" * 5000), 1):
        forwarded = b"X-Forwarded-For: 198.51.100.1, " + hop + b"\r\n"
        assert await raw(auth, b"GET /verify/challenge?key_id_b64=x HTTP/1.1\r\n" + forwarded) == 400, hop
        assert await raw(auth, b"POST /token HTTP/1.1\r\n" + _FORM + forwarded, b"grant_type=x") == 400, hop
        assert await raw(auth, b"GET /user HTTP/1.1\r\nAuthorization: Bearer wrong\r\n" + forwarded) == 401, hop
        cookie = b"Cookie: mlpa_sign_in=" + b"c" * 43 + b"\r\n"
        form = b"csrf=" + b"c" * 43 + b"&key=wrong"
        assert await raw(auth, b"POST /admin/sign-in HTTP/1.1\r\n" + _FORM + cookie + forwarded, form) == 401, hop
        assert {who[3]: counts["attempts"] for who, counts in (await rows.refusals(auth)).items()} == {
            "127.0.0.1": 2 * times
        }, hop


async def test_a_target_of_any_bytes(auth: Auth) -> None:
    for target in [
        b"/admin?\xff",
        b"/admin/\xff",
        b"/admin/sign-in?next=\xff",
        b"/user/\xff",
        b"/user?q=\xff",
        b"/\xff",
    ]:
        for accept in (b"text/html", b"\xff"):
            assert await raw(auth, b"GET " + target + b" HTTP/1.1\r\nAccept: " + accept + b"\r\n") < 500, target
