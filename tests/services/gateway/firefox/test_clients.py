"""Replays of what the shipped clients send, and their readings of what they get."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from services.local.device import Device
from services.local.fxa import DESKTOP_CLIENT_ID, EventOrder, TokenOrder
from shared.domain.tokens import CLIENT_HEADER, EXCHANGE_KEY_HEADER
from tests.doubles.litellm import DONE, Script, chunk, event, stream_of
from tests.services.auth.conftest import UID
from tests.services.auth.exchange.test_app_attest_request import exchange, subject
from tests.services.gateway.firefox import clients
from tests.services.gateway.firefox.clients import Broken, android_stream, chat, ios_stream
from tests.services.gateway.firefox.conftest import DEV_KEY, KEY, Door, StartDoor


async def test_a_chat_of_desktop_is_answered(door: Door) -> None:
    answer = await door.desktop(door.auth.fxa_token())
    assert (answer.status, answer.json()["choices"][0]["message"]["content"]) == (200, "Hello")
    (asked,) = door.double.asked
    assert asked.body["user"] == f"{UID}:ai"
    assert "tools" not in asked.body
    assert door.count("desktop", "fxa", "success") == 1
    (headers, form) = door.between.asked[0]
    assert (headers[EXCHANGE_KEY_HEADER], headers[CLIENT_HEADER], form["scope"]) == (KEY, "127.0.0.1", "ai")


async def test_a_token_of_before_a_new_password_is_a_401_although_its_exchange_is_remembered(
    start_door: StartDoor,
) -> None:
    door = await start_door(auth_settings={"fxa_client_ids": DESKTOP_CLIENT_ID})
    fxa, claims = door.auth.fxa, door.auth.fxa.claims(TokenOrder(uid=UID))
    before = fxa.sign(claims)
    assert (await door.desktop(before)).status == 200
    second = int(time.time()) + 1
    changed = {"https://schemas.accounts.firefox.com/event/password-change": {"changeTime": second * 1000}}
    bearer = {"Authorization": f"Bearer {fxa.security_event(EventOrder(UID), events=changed)}"}
    assert (await door.auth.ask("POST", "/fxa/events", headers=bearer))[0] == 200
    assert (await door.desktop(before)).status == 401
    await asyncio.sleep(max(0, second - time.time()))  # so that the next access token is of after it too
    assert (await door.desktop(fxa.sign({**claims, "iat": second}))).status == 200
    assert len(door.between.asked) == 2


async def test_a_search_of_desktop_is_answered_until_the_budget_is_spent(door: Door) -> None:
    token = door.auth.fxa_token()
    asked = {"body": {"query": "weather", "max_results": 3}, "service_type": "search", "purpose": None}
    answer = await door.desktop(token, **asked, path="/v1/search")
    assert (answer.status, len(answer.json()["results"])) == (200, 3)
    result = answer.json()["results"][0]
    assert (result["title"], result["url"], result["publishedDate"]) == ("Title", "https://example.org", result["date"])
    (sent,) = door.double.asked
    assert sent.body == {"query": "weather", "max_results": 3, "user": f"{UID}:search"}
    answer = await door.desktop(token, **asked, path="/v1/search")
    assert (answer.status, answer.json()) == (429, {"error": 1, "detail": {"error": 1}})
    assert answer.headers["x-should-retry"] == "false"
    answer = await door.desktop(token, {"query": ""}, path="/v1/search")
    assert (answer.status, answer.json()) == (400, {"error": 9, "detail": {"error": 9}})
    assert len(door.double.asked) == 1


async def test_a_chat_of_ios_is_answered_streamed_and_not(door: Door) -> None:
    device = await door.device()
    answer = await door.ios(device)
    assert (answer.status, answer.json()["choices"][0]["message"]["content"]) == (200, "Hello")
    answer = await door.ios(device, chat(stream=True))
    assert (answer.status, ios_stream(answer.raw)) == (200, "Hello")
    assert {asked.body["user"] for asked in door.double.asked} == {f"{device.key_id_b64}:s2s"}
    assert len(door.between.asked) == 2, "one exchange for each request"
    assert door.count("ios", "app_attest_request", "success") == 2


async def test_ios_enrols_as_it_was_shipped_and_then_chats(door: Door) -> None:
    """Its challenge has an unescaped ``+``, its attestation comes in a header with an empty body."""
    while "+" not in (device := door.auth.device()).key_id_b64:
        pass
    reader, writer = await asyncio.open_connection("127.0.0.1", int(door.auth.url.rpartition(":")[2]))
    writer.write(f"GET /verify/challenge?key_id_b64={device.key_id_b64} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    challenge = json.loads(await reader.readexactly(length))["challenge"]
    writer.close()
    token = clients.jwt(door.auth.attest_body(device, challenge))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    assert (await door.auth.ask("POST", "/verify/attest", headers=headers, data=b""))[0] == 201
    assert (await door.ios(device)).status == 200


async def test_a_chat_of_android_is_answered(door: Door) -> None:
    token = await door.access_token("s2s-android")
    for service_type in ("s2s-android", "s2s", "old-name"):
        answer = await door.android(token, chat(stream=True), service_type=service_type)
        assert (answer.status, android_stream(answer.raw)) == (200, "Hello")
    assert not door.between.asked, "the gateway verifies it alone"
    assert door.count("android", "play", "success") == 3
    answer = await door.android(token, service_type="ai")
    assert (answer.status, set(answer.json())) == (403, {"error", "detail"})


async def test_a_thousand_chats_of_one_fxa_token_are_one_exchange(door: Door) -> None:
    token = door.auth.fxa_token()
    answers = []
    for _ in range(20):
        answers += await asyncio.gather(*(door.desktop(token) for _ in range(50)))
    assert {answer.status for answer in answers} == {200}
    assert len(answers) == 1000
    assert len(door.between.asked) == 1
    assert (await door.desktop(token, service_type="memories", purpose=None)).status == 200
    assert len(door.between.asked) == 2, "another service type is another token"


async def test_parallel_chats_of_a_device_all_succeed_whatever_their_order(door: Door) -> None:
    device = await door.device()
    sent = [clients.ios(device, await door.auth.challenge(device), chat()) for _ in range(20)]
    answers = await asyncio.gather(*(clients.send(door.port, one) for one in reversed(sent)))
    assert [answer.status for answer in answers] == [200] * 20
    again = await asyncio.gather(*(clients.send(door.port, one) for one in sent))
    assert [answer.status for answer in again] == [401] * 20, "each counter once"


async def test_an_assertion_is_for_the_body_that_it_was_made_over(door: Door) -> None:
    device = await door.device()
    altered = await door.ios(device, sent=json.dumps(chat("exa")).encode())
    assert (altered.status, altered.json()) == (401, {"detail": "Invalid App Attest auth"})
    foreign = await door.device()
    stolen = await door.ios(device, claims={"key_id_b64": foreign.key_id_b64})
    other = await door.ios(device, challenge=await door.auth.challenge(foreign))
    unknown = await door.ios(door.auth.device())
    assert [answer.status for answer in (stolen, other, unknown)] == [401] * 3
    assert not door.double.asked
    assert (await door.ios(device)).status == 200


async def test_claims_that_are_malformed_are_a_401(door: Door) -> None:
    device = await door.device()
    for claims in [
        {"assertion_obj_b64": "AAAA"},
        {"assertion_obj_b64": None},
        {"challenge_b64": "!"},
        {"bundle_id": "org.example"},
        {"bundle_id": 7},
        {"key_id_b64": ""},
    ]:
        answer = await door.ios(device, claims=claims)
        assert (answer.status, answer.json()) == (401, {"detail": "Invalid App Attest auth"}), claims


async def test_the_client_data_of_an_exchange_is_not_a_request(door: Door) -> None:
    """Otherwise an assertion that a device made for an exchange would pass for one over a request."""
    device = await door.device()
    challenge = await door.auth.challenge(device)
    data = json.dumps({"typ": "mlpa-token-exchange", "aud": "http://localhost:8081", "challenge": challenge})
    answer = await door.ios(device, raw=data.encode(), challenge=challenge)
    assert (answer.status, door.between.asked) == (401, [])


async def test_a_token_of_one_body_is_good_for_no_other_request(door: Door) -> None:
    device = await door.device()
    body = json.dumps(chat()).encode()
    token = await _bound_token(door, device, body)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    async def ask(method: str, path: str, data: bytes | None = None, **more: str) -> int:
        async with door.session.request(method, door.url + path, data=data, headers={**headers, **more}) as answer:
            return answer.status

    assert await ask("POST", "/v1/chat/completions", body + b" ") == 401
    assert await ask("POST", "/v1/chat/completions", body + b" ", **{"service-type": "s2s"}) == 401
    assert await ask("GET", "/v1/models") == 401
    assert await ask("GET", "/v1/budget") == 401
    assert await ask("POST", "/v1/chat/completions", body) == 200


async def _bound_token(door: Door, device: Device, body: bytes) -> str:
    status, answer = await exchange(door.auth, await subject(door.auth, device, body))
    assert status == 200, answer
    return str(answer["access_token"])


async def test_without_the_setting_the_header_means_nothing(start_door: StartDoor) -> None:
    door = await start_door(firefox_clients=False)
    answer = await door.desktop(door.auth.fxa_token())
    assert (answer.status, answer.json()["error"]["code"]) == (401, "invalid_token")
    assert (await door.desktop(await door.access_token("ai"), service_type="nonsense")).status == 200


async def test_without_the_header_a_request_is_openais_whatever_the_setting(door: Door) -> None:
    answer = await door.desktop(door.auth.fxa_token(), service_type=None)
    assert (answer.status, answer.json()["error"]["code"]) == (401, "invalid_token")
    answer = await door.desktop(await door.access_token("ai"), chat(stream=True), service_type=None)
    assert answer.status == 200
    assert not door.between.asked


async def test_a_row_with_a_client_key_needs_it_from_everybody(door: Door) -> None:
    token, access_token = door.auth.fxa_token(), await door.access_token("ai-dev")
    good = [("x-dev-authorization", DEV_KEY)]
    for given in [None, "", "wrong", DEV_KEY + "x"]:
        more = [("x-dev-authorization", given)] if given is not None else []
        answer = await door.desktop(token, service_type="ai-dev", purpose=None, more=more)
        assert (answer.status, isinstance(answer.json()["error"], str)) == (403, True), given
        answer = await door.desktop(access_token, service_type=None, more=more)
        assert (answer.status, answer.json()["error"]["code"]) == (403, "forbidden"), given
        assert (await door.desktop(token, service_type="ai-dev", purpose=None, more=good)).status == 200, given
        assert (await door.desktop(access_token, service_type=None, more=good)).status == 200, given


async def test_a_stream_has_data_lines_alone_whatever_litellm_sends(door: Door) -> None:
    events = [
        b": a comment\n\n",
        b"event: x\nid: 7\ndata:" + json.dumps(chunk("Hel")).encode() + b"\r\n\r\n",
        b"\n\n: another\n\ndata:  " + json.dumps(chunk("l")).encode() + b"\n\n",
        b"retry: 5\n\n",
        b"data: " + json.dumps(chunk("o"), indent=1).replace("\n", "\ndata: ").encode() + b"\n\n",
        b"data:\n\n",
        event(chunk(finish="stop")),
        DONE,
    ]
    door.double.script("gpt", Script.events(events, pause=0.02))
    device = await door.device()
    answer = await door.ios(device, chat(stream=True))
    assert (ios_stream(answer.raw), android_stream(answer.raw)) == ("Hello", "Hello")
    lines = answer.raw.split(b"\n")
    assert all(line == b"" or line.startswith(b"data: ") for line in lines)
    assert b"\r" not in answer.raw
    assert answer.raw.endswith(b"data: [DONE]\n\n")


async def test_silence_is_not_filled_with_comments(start_door: StartDoor) -> None:
    door = await start_door(keepalive_seconds=0.05)
    parts = stream_of(["Hel", "lo"])
    door.double.script("gpt", Script.events(parts, pause=0.2))
    answer = await door.desktop(door.auth.fxa_token(), chat(stream=True, tools=[]))
    assert answer.raw.startswith(b"data: ")
    assert b": keep" not in answer.raw
    assert android_stream(answer.raw) == "Hello"


async def test_an_error_in_a_stream_ends_it_with_a_number_or_a_text(door: Door) -> None:
    limited = {"error": {"message": "slow", "type": "throttling_error", "param": None, "code": "429"}}
    token = door.auth.fxa_token()
    for parts, told in (
        ([event(chunk("Hel")), event(limited)], 5),
        ([event(chunk("Hel"))], "The model's answer was cut short."),
    ):
        door.double.script("gpt", Script.events(parts))
        answer = await door.desktop(token, chat(stream=True, tools=[]))
        assert answer.status == 200
        assert answer.raw.endswith(b"data: " + json.dumps({"error": told}).encode().replace(b": ", b":") + b"\n\n")
        assert b"[DONE]" not in answer.raw
        with pytest.raises(Broken):
            ios_stream(answer.raw)
    assert door.count("desktop", "fxa", "failure") == 2


async def test_an_error_before_the_first_event_has_its_status(door: Door) -> None:
    limited = {"error": {"message": "slow", "type": "throttling_error", "param": None, "code": "429"}}
    door.double.script("gpt", Script.events([event(limited)]))
    answer = await door.desktop(door.auth.fxa_token(), chat(stream=True, tools=[]))
    assert (answer.status, answer.json()) == (429, {"error": 5, "detail": {"error": 5}})


async def test_who_asks_from_where_is_counted(start_door: StartDoor) -> None:
    door = await start_door(client_metrics=True, trusted_proxies=1, client_metrics_series=3)
    token = door.auth.fxa_token()

    def counted(model: str, country: str, version: str, service_type: str = "ai") -> float:
        return door.metric(
            f'client_requests_total{{country="{country}",firefox_version="{version}",model="{model}",'
            f'service_type="{service_type}"}}'
        )

    await door.desktop(token, more=[("X-Geo-Country", "DE")])
    assert counted("gpt", "DE", "148") == 1
    await door.desktop(token, more=[("X-Geo-Country", "Atlantis")])
    await door.desktop(token, more=[("X-Geo-Country", "DE"), ("X-Geo-Country", "FR")])
    assert counted("gpt", "unknown", "148") == 2
    await door.desktop(token, chat("unknown-model"), more=[("X-Geo-Country", "FR")])
    assert counted("other", "FR", "148") == 1
    for country in ("IT", "ES"):
        await door.desktop(token, more=[("X-Geo-Country", country)])
    assert counted("other", "other", "other", "other") == 2
    assert counted("gpt", "DE", "148") == 1


async def test_requests_that_are_refused_before_any_handler_are_counted(start_door: StartDoor) -> None:
    door = await start_door(client_metrics=True, max_request_size_bytes=5000)
    answer = await door.desktop(door.auth.fxa_token(), chat(user="x" * 5000))
    assert (answer.status, door.count("desktop", "fxa", "refused")) == (413, 1)
    assert door.metric('client_requests_total{country="unknown",firefox_version="148",model="other"') == 1


async def test_a_country_from_nobody_known_is_unknown(start_door: StartDoor) -> None:
    door = await start_door(client_metrics=True)
    await door.desktop(door.auth.fxa_token(), more=[("X-Geo-Country", "DE")])
    assert door.metric('client_requests_total{country="unknown",firefox_version="148",model="gpt"') == 1


def test_the_parsers_obey_the_clients_rules() -> None:
    """Android is broken by what iOS drops."""
    good = event(chunk("x"))
    for bad in (b": comment\n\n", b"event: x\n\n", b"data:{}\n\n"):
        assert ios_stream(bad + good) == "x"
        with pytest.raises(Broken):
            android_stream(bad + good)
