"""GET /verify/challenge and POST /verify/attest, as clients of every kind send them."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from jose import jwt

from services.auth.challenge.services import Challenges
from services.auth.errors import InvalidChallenge
from services.local.device import Device
from services.local.pki import Pki
from shared.stores.redis import connect
from tests.services.auth.conftest import BUNDLE, TEAM, Auth, StartAuth, many
from tests.support.clock import Clock

KEY_ID = base64.b64encode(bytes([0xFB, 0xEF, 0xBE]) * 10 + b"\x00\x01").decode()  # full of + and /


async def test_every_way_to_write_a_key_id_names_the_same_device(auth: Auth, redis_url: str) -> None:
    challenges = Challenges(auth.settings.challenge_secrets(), lifetime=300, redis=connect(redis_url))
    for written in [
        quote(KEY_ID, safe=""),
        KEY_ID.replace("=", ""),
        quote(KEY_ID.replace("+", "-").replace("/", "_"), safe=""),
        KEY_ID.replace("+", " ").replace(" ", "%20"),
    ]:
        async with auth.session.get(f"{auth.url}/verify/challenge?key_id_b64={written}") as response:
            body = await response.json()
            assert response.status == 200, written
            assert response.headers["Cache-Control"] == "no-store", written
        assert body["expires_in"] == 300, written
        challenges.check(body["challenge"], KEY_ID)


async def test_anything_else_is_a_400(auth: Auth) -> None:
    for key_id in ["", "AAAA", "!" * 44, "A" * 44, "A" * 43 + "==", KEY_ID * 2, "\u00e9" * 43, KEY_ID + "\n"]:
        status, body, _ = await auth.ask("GET", "/verify/challenge", params={"key_id_b64": key_id})
        assert (status, body["error"]) == (400, "invalid_request"), key_id


async def test_a_challenge_is_new_each_time_and_stores_nothing(auth: Auth, redis_url: str) -> None:
    device = auth.device()
    challenges = {await auth.challenge(device) for _ in range(20)}
    assert len(challenges) == 20
    async with connect(redis_url) as redis:
        assert not [key async for key in redis.scan_iter("mlpa:{*}:c:*")]


async def test_firefox_for_ios_enrols_with_its_claims_in_a_jwt(auth: Auth) -> None:
    device = auth.device()
    claims = auth.attest_body(device, await auth.challenge(device))
    wrapped = jwt.encode(claims, "throw-away", algorithm="HS256")
    status, body, _ = await auth.ask("POST", "/verify/attest", headers={"Authorization": f"Bearer {wrapped}"})
    assert (status, body) == (201, {"status": "success"})


def wrapped(payload: bytes) -> str:
    return "Bearer e30." + base64.urlsafe_b64encode(payload).decode().rstrip("=") + ".x"


async def test_an_empty_body_without_good_claims_is_a_400(auth: Auth) -> None:
    for header in [
        wrapped(b"[" * 5000),
        wrapped(b'{"key_id_b64":"a","key_id_b64":"b","challenge_b64":"","attestation_obj_b64":"","bundle_id":""}'),
        wrapped(b'{"key_id_b64":"","challenge_b64":"","attestation_obj_b64":"","bundle_id":"\\ud800"}'),
        None,
        "Bearer",
        "Bearer junk",
        "Bearer a.b.c",
        "Basic x",
        "Bearer " + "a" * 33_000,
        "Bearer " + "a" * 40_900,
        "Bearer " + jwt.encode({"key_id_b64": 7}, "x", algorithm="HS256"),
    ]:
        headers = {"Authorization": header} if header else {}
        status, body, _ = await auth.ask("POST", "/verify/attest", headers=headers)
        assert (status, body["error"]) == (400, "invalid_request"), header


async def test_claims_in_a_header_field_over_40_kib_are_a_431(auth: Auth) -> None:
    headers = {"Authorization": "Bearer " + "a" * 45_000}
    status, body, _ = await auth.ask("POST", "/verify/attest", headers=headers)
    assert (status, body["error"]) == (431, "invalid_request")


async def test_a_malformed_body_is_a_400(auth: Auth) -> None:
    for raw in [
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"key_id_b64":1}',
        b"[" * 20_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"key_id_b64":"a","key_id_b64":"b","challenge_b64":"","attestation_obj_b64":"","bundle_id":""}',
    ]:
        status, body, _ = await auth.ask("POST", "/verify/attest", data=raw)
        assert (status, body["error"]) == (400, "invalid_request"), raw


def changed(body: dict[str, str], **changes: str) -> dict[str, str]:
    return {**body, **changes}


async def test_each_way_to_fail_has_its_status(auth: Auth) -> None:
    device = auth.device()
    challenge = await auth.challenge(device)
    body = auth.attest_body(device, challenge)
    other = auth.attest_body(auth.device(), challenge)
    cases: list[tuple[dict[str, str], int, str]] = [
        (changed(body, key_id_b64="AAAA"), 400, "invalid_request"),
        (changed(body, attestation_obj_b64="!!"), 400, "invalid_request"),
        (changed(body, attestation_obj_b64=base64.b64encode(b"\xa1\x01\x02x").decode()), 400, "invalid_request"),
        (changed(body, challenge_b64=base64.b64encode(b"0" * 64).decode()), 401, "invalid_challenge"),
        (changed(body, challenge_b64=base64.b64encode(challenge.encode() + b"0").decode()), 401, "invalid_challenge"),
        (other, 401, "invalid_challenge"),
        (changed(body, bundle_id="org.evil"), 403, "attestation_rejected"),
    ]
    for sent, status, error in cases:
        answer = await auth.ask("POST", "/verify/attest", json=sent)
        assert (answer[0], answer[1]["error"]) == (status, error)
    assert (await auth.ask("POST", "/verify/attest", json=body))[0] == 201, "a refused attempt uses no challenge up"
    assert (await auth.ask("POST", "/verify/attest", json=body))[0] == 401, "a challenge can be used once"


async def test_a_device_under_another_root_is_rejected(auth: Auth) -> None:
    stranger = Device(pki=Pki.create(), team_id=TEAM, bundle_id=BUNDLE)
    status, body = await auth.enrol(stranger)
    assert (status, body["error"]) == (403, "attestation_rejected")


async def test_a_source_that_asks_too_often_is_told_when_to_come_back(start_auth: StartAuth) -> None:
    auth = await start_auth(challenge_limit_per_source=3, enroll_limit_per_source=2)
    device = auth.device()
    for _ in range(3):
        await auth.challenge(device)
    status, body, headers = await auth.ask("GET", "/verify/challenge", params={"key_id_b64": device.key_id_b64})
    assert (status, body["error"]) == (429, "slow_down")
    assert 1 <= int(headers["Retry-After"]) <= 120
    answers = [await auth.ask("POST", "/verify/attest", json={}) for _ in range(3)]
    assert [status for status, _, _ in answers] == [400, 400, 429]


async def test_garbage_keeps_no_good_device_of_its_source_from_enrolling(start_auth: StartAuth) -> None:
    auth = await start_auth(challenge_limit_per_source=4, enroll_limit_per_source=2)
    junk = [(await auth.ask("GET", "/verify/challenge", params={"key_id_b64": "x"}))[0] for _ in range(6)]
    assert junk == [400] * 4 + [429] * 2
    forged = auth.attest_body(auth.device(), await auth.challenge(auth.device()))
    assert [(await auth.ask("POST", "/verify/attest", json=forged))[0] for _ in range(3)] == [401, 401, 429]
    assert [(await auth.enrol(auth.device()))[0] for _ in range(3)] == [201, 201, 429]


async def test_of_many_good_devices_at_once_exactly_as_many_enrol_as_a_source_may(start_auth: StartAuth) -> None:
    auth = await start_auth(enroll_limit_per_source=5)
    devices = [auth.device() for _ in range(12)]
    bodies = [auth.attest_body(device, await auth.challenge(device)) for device in devices]

    async def enrol(number: int) -> int:
        return (await auth.ask("POST", "/verify/attest", json=bodies[number]))[0]

    statuses = await many(12, enrol)
    assert (statuses.count(201), statuses.count(429)) == (5, 7)


async def test_an_attestation_that_met_the_limit_can_be_sent_again(start_auth: StartAuth) -> None:
    """Apple attests a key once only: a challenge that is lost to a limit would lose the key."""
    auth = await start_auth(enroll_limit_per_source=1)
    assert (await auth.enrol(auth.device()))[0] == 201
    device = auth.device()
    body = auth.attest_body(device, await auth.challenge(device))
    assert (await auth.ask("POST", "/verify/attest", json=body))[0] == 429
    other = await start_auth(enroll_limit_per_source=0)  # a process that has not found the window full
    assert (await other.ask("POST", "/verify/attest", json=body))[0] == 201


async def test_behind_a_proxy_the_source_is_the_trusted_hops(start_auth: StartAuth) -> None:
    auth = await start_auth(challenge_limit_per_source=1, trusted_proxies=1)
    params = {"key_id_b64": auth.device().key_id_b64}

    async def ask(forwarded: str) -> int:
        headers = {"X-Forwarded-For": forwarded}
        return (await auth.ask("GET", "/verify/challenge", params=params, headers=headers))[0]

    assert await ask("9.9.9.9, 1.1.1.1") == 200
    assert await ask("8.8.8.8, 1.1.1.1") == 429, "what the client wrote itself does not count"
    assert await ask("1.1.1.1, 2.2.2.2") == 200


async def test_a_challenge_lives_as_long_as_it_says_and_is_bound_to_key_and_secret(redis_url: str) -> None:
    clock = Clock()
    async with connect(redis_url) as redis:
        old = Challenges([b"old"], lifetime=300, redis=redis, clock=clock)
        both = Challenges([b"new", b"old"], lifetime=300, redis=redis, clock=clock)
        challenge = old.issue("key")
        both.check(challenge, "key")
        clock.now += 299
        both.check(challenge, "key")
        clock.now += 2
        with pytest.raises(InvalidChallenge):
            both.check(challenge, "key")
        clock.now -= 301 + 31
        with pytest.raises(InvalidChallenge):
            both.check(challenge, "key")
        clock.now += 9
        with pytest.raises(InvalidChallenge):
            old.check(both.issue("key"), "key")
        with pytest.raises(InvalidChallenge):
            old.check(challenge, "other")
        for position in range(64):
            flipped = challenge[:position] + ("0" if challenge[position] != "0" else "1") + challenge[position + 1 :]
            with pytest.raises(InvalidChallenge):
                old.check(flipped, "key")


async def test_a_bad_challenge_is_answered_with_the_challenge_that_a_401_needs(auth: Auth) -> None:
    status, _, headers = await auth.ask(
        "POST", "/verify/attest", json=auth.attest_body(auth.device(), await auth.challenge(auth.device()))
    )
    assert (status, headers["WWW-Authenticate"]) == (401, 'AppAttest realm="mlpa"')
