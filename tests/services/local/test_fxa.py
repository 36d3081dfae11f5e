"""The FxA stand-in has FxA's shapes, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import re
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import KeySet

from services.local.fxa import DESKTOP_CLIENT_ID, EventOrder, StandIn, TokenOrder
from services.local.fxa_keys import KeyRing, SigningKey
from services.local.process import Process, Program, answers
from tests.support.serving import serve
from tests.support.waiting import until

UID = "0123456789abcdef0123456789abcdef"
ISSUER = "https://accounts.firefox.test"


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else None
        json = None if isinstance(body, bytes) else body
        headers = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
        async with self._session.request(method, self._url + path, json=json, data=data, headers=headers) as response:
            return response.status, await response.json()

    async def token(self, **order: Any) -> str:
        status, body = await self.ask("POST", "/local/token", order)
        assert status == 200
        return str(body["token"])


@pytest.fixture
async def client(fxa_keys: list[SigningKey]) -> AsyncIterator[Client]:
    async with (
        serve(StandIn(ISSUER, KeyRing(fxa_keys)).app()) as url,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session,
    ):
        yield Client(session, url)


async def test_three_rsa_keys_are_published_as_fxa_does(client: Client) -> None:
    async with client._session.get(client._url + "/v1/jwks") as response:
        assert response.headers["Cache-Control"] == "max-age=10, must-revalidate, public"
        body = await response.json()
    assert len({key["kid"] for key in body["keys"]}) == 3
    for key in body["keys"]:
        assert key.keys() == {"kty", "alg", "kid", "fxa-createdAt", "use", "n", "e"}
        assert (key["kty"], key["alg"], key["use"]) == ("RSA", "RS256", "sig")
        assert re.fullmatch(r"\d{8}-[0-9a-f]{8}", key["kid"])
        assert key["fxa-createdAt"] % 3600 == 0


async def test_an_event_is_delivered_until_it_is_taken_each_time_in_another_token(fxa_keys: list[SigningKey]) -> None:
    statuses, sent = [500, 429, 203, 204], []
    taken = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        assert await request.read() == b""
        sent.append(request.headers["Authorization"].removeprefix("Bearer "))
        if len(sent) == len(statuses):
            taken.set()
        return web.Response(status=statuses[len(sent) - 1])

    app = web.Application()
    app.router.add_post("/events", take)
    fxa = StandIn(ISSUER, KeyRing(fxa_keys))
    order = TokenOrder(uid=UID, kind="opaque")
    mine, others = fxa.mint(order), fxa.mint(TokenOrder(kind="opaque"))
    async with serve(app) as url, serve(fxa.app()):
        fxa.events_url = f"{url}/events"
        assert await fxa.happen(EventOrder(UID)) == 500
        await asyncio.wait_for(taken.wait(), 10)
        await until(lambda: fxa.deliveries == statuses)
    keys = KeySet.import_key_set({"keys": fxa.ring.published()})  # type: ignore[typeddict-item]
    tokens = [jwt.decode(text, keys, algorithms=["RS256"]) for text in sent]
    assert len({token.claims["jti"] for token in tokens}) == len(statuses)
    for token in tokens:
        assert token.header == {"alg": "RS256", "kid": fxa.ring.signing.kid}
        assert token.claims.keys() == {"iss", "aud", "sub", "iat", "jti", "events"}
        assert (token.claims["iss"], token.claims["sub"]) == (f"{ISSUER}/", UID)
        assert isinstance(token.claims["iat"], float)
        changed = {"changeTime": fxa.claims(order)["fxa-generation"]}
        assert token.claims["events"] == {"https://schemas.accounts.firefox.com/event/password-change": changed}
    assert (fxa.destroy(mine), fxa.destroy(others)) == (False, True)


async def test_a_jwt_is_as_fxa_makes_it(client: Client) -> None:
    _, jwks = await client.ask("GET", "/v1/jwks")
    text = await client.token(uid=UID, scopes=["profile:uid", "a:b"], client_id="abc", ttl=60)
    token = jwt.decode(text, KeySet.import_key_set(jwks), algorithms=["RS256"])
    assert token.header == {"alg": "RS256", "typ": "at+JWT", "kid": jwks["keys"][0]["kid"]}
    claims = token.claims
    assert claims.keys() == {
        *("aud", "client_id", "exp", "iat", "iss", "jti", "scope", "sub", "fxa-generation", "fxa-profileChangedAt")
    }
    assert (claims["iss"], claims["sub"], claims["client_id"], claims["aud"]) == (ISSUER, UID, "abc", "abc")
    assert claims["scope"] == "profile:uid a:b"
    assert claims["exp"] - claims["iat"] == 60
    assert re.fullmatch(r"[0-9a-f]{64}", claims["jti"])


async def test_a_jwt_for_a_resource_names_it_beside_its_client(client: Client) -> None:
    _, jwks = await client.ask("GET", "/v1/jwks")
    text = await client.token(client_id="abc", resource="https://service.test")
    assert jwt.decode(text, KeySet.import_key_set(jwks)).claims["aud"] == ["abc", "https://service.test"]


@pytest.mark.parametrize(
    ("order", "members"),
    [
        ({"kind": "opaque"}, {"profile_changed_at"}),
        ({"kind": "jwt"}, {"generation", "profile_changed_at"}),
        ({"kind": "jwt", "ttl": 6 * 3600 + 1}, {"profile_changed_at"}),
    ],
    ids=str,
)
async def test_tokens_of_either_kind_are_verified(client: Client, order: dict[str, Any], members: set[str]) -> None:
    token = await client.token(uid=UID, **order)
    status, body = await client.ask("POST", "/v1/verify", {"token": token})
    assert status == 200
    assert body.keys() == {"user", "client_id", "scope", *members}
    assert (body["user"], body["client_id"], body["scope"]) == (UID, DESKTOP_CLIENT_ID, ["profile:uid"])
    if order["kind"] == "opaque":
        assert re.fullmatch(r"[0-9a-f]{64}", token)


async def test_a_token_may_come_in_a_form(client: Client) -> None:
    token = await client.token(kind="opaque")
    async with client._session.post(client._url + "/v1/verify", data={"token": token}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("body", "errno"),
    [
        ({"token": "f" * 64}, 108),
        ({"token": "a.b.c"}, 108),
        ({"token": "F" * 64}, 109),
        ({"token": "a.b." + "c" * 1024}, 109),
        ({"token": "f" * 64, "scope": "profile"}, 108),
        ({"token": 5}, 109),
        ({}, 109),
        ([], 109),
        (b"{", 999),
        (b"", 109),
    ],
    ids=str,
)
async def test_refusals_have_fxas_numbers(client: Client, body: Any, errno: int) -> None:
    status, answer = await client.ask("POST", "/v1/verify", body)
    assert (status, answer["code"], answer["errno"]) == (400, 400, errno)
    assert {"error", "message", "info"} <= answer.keys()
    assert ("validation" in answer) == (errno == 109)


async def test_a_body_of_another_type_is_refused(client: Client) -> None:
    async with client._session.post(client._url + "/v1/verify", data=b"token") as response:
        assert (response.status, (await response.json())["errno"]) == (415, 113)


async def test_a_body_without_a_type_is_json(client: Client) -> None:
    url, body = client._url + "/v1/verify", b'{"token": "%b"}' % (await client.token()).encode()
    async with client._session.post(url, data=body, skip_auto_headers=["Content-Type"]) as response:
        assert response.status == 200


@pytest.mark.parametrize(("kind", "errno"), [("jwt", 108), ("opaque", 115)])
async def test_only_an_opaque_token_is_told_to_have_expired(client: Client, kind: str, errno: int) -> None:
    token = await client.token(kind=kind, ttl=-1)
    _, answer = await client.ask("POST", "/v1/verify", {"token": token})
    assert answer["errno"] == errno
    assert ("expiredAt" in answer) == (errno == 115)


@pytest.mark.parametrize("order", [{"kind": "opaque"}, {"kind": "jwt", "ttl": 7 * 3600}], ids=str)
async def test_a_destroyed_token_is_unknown(client: Client, order: dict[str, Any]) -> None:
    token = await client.token(**order)
    assert await client.ask("POST", "/v1/destroy", {"token": token}) == (200, {})
    for path in ("/v1/verify", "/v1/destroy"):
        _, answer = await client.ask("POST", path, {"token": token})
        assert answer["errno"] == 108


async def test_a_short_lived_jwt_cannot_be_destroyed(client: Client) -> None:
    token = await client.token()
    status, answer = await client.ask("POST", "/v1/destroy", {"token": token})
    assert (status, answer["errno"]) == (400, 108)
    assert (await client.ask("POST", "/v1/verify", {"token": token}))[0] == 200


async def test_the_next_key_was_published_before_it_signs(client: Client) -> None:
    _, before = await client.ask("GET", "/v1/jwks")
    _, rotated = await client.ask("POST", "/local/rotate")
    _, after = await client.ask("GET", "/v1/jwks")
    kids = [key["kid"] for key in before["keys"]]
    assert rotated["kid"] == kids[1]
    current, _, last = [key["kid"] for key in after["keys"]]
    assert (current, last) == (kids[1], kids[0])


async def test_answers_are_replaced_for_as_many_requests_as_told(client: Client) -> None:
    fault = {"endpoint": "jwks", "kind": "respond", "status": 503, "body": "{}", "times": 2}
    await client.ask("POST", "/local/faults", {**fault, "headers": {"Content-Type": "application/json"}})
    assert [(await client.ask("GET", "/v1/jwks"))[0] for _ in range(3)] == [503, 503, 200]


async def test_it_hangs_and_resets_until_told_otherwise(client: Client) -> None:
    await client.ask("POST", "/local/faults", {"endpoint": "jwks", "kind": "hang"})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.ask("GET", "/v1/jwks")
    await client.ask("POST", "/local/faults", {"endpoint": "jwks", "kind": "reset"})
    with pytest.raises(aiohttp.ClientError):
        await client.ask("GET", "/v1/jwks")
    await client.ask("DELETE", "/local/faults")
    assert (await client.ask("GET", "/v1/jwks"))[0] == 200
    _, calls = await client.ask("GET", "/local/calls")
    assert calls["jwks"] >= 3


async def test_a_control_that_is_malformed_is_told(client: Client) -> None:
    async with client._session.post(client._url + "/local/token", json={"user": UID}) as response:
        assert response.status == 400
        assert "user" in await response.text()


def test_keys_are_kept_in_their_folder_for_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "fxa"
    first = KeyRing.open(folder)
    first.rotate()
    second = KeyRing.open(folder)
    assert second.published() == first.published()
    assert second.signing.kid == first.signing.kid
    [file] = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def program(folder: Path, port: int) -> Program:
    events = ("--events-url", f"http://127.0.0.1:{port}/__lbheartbeat__")  # answers 405
    argv = (sys.executable, "-m", "services.local.fxa", "--port", str(port), "--keys", str(folder / "keys"), *events)
    return Program("the FxA stand-in", argv)


@contextmanager
def running(folder: Path, port: int) -> Iterator[None]:
    process = Process(program(folder, port), folder / "fxa.log")
    process.start()
    try:
        process.wait_ready(lambda: answers(f"http://127.0.0.1:{port}/__lbheartbeat__"))
        yield
    finally:
        process.stop()


async def test_it_runs_alone_and_a_restart_keeps_its_keys(tmp_path: Path, unused_port: int) -> None:
    seen = []
    for _ in range(2):
        with running(tmp_path, unused_port):
            async with aiohttp.ClientSession() as session:
                client = Client(session, f"http://127.0.0.1:{unused_port}")
                status, body = await client.ask("GET", "/v1/jwks")
                assert status == 200
                seen.append(body["keys"])
                text = await client.token()
                claims = jwt.decode(text, KeySet.import_key_set(body), algorithms=["RS256"]).claims
                assert claims["iss"] == f"http://127.0.0.1:{unused_port}"
    assert seen[0] == seen[1]
