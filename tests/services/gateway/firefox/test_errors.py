"""Refusals and outages, as shipped clients are told them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from services.auth.tokens.key_ring import KEY_RING
from services.cli.commands import cli
from services.gateway.errors import GatewayError, UserBlocked, kinds
from services.gateway.firefox import rendering
from services.gateway.firefox.exchanges import Exchanges
from services.local.faults import Fault
from shared.stores.postgres import Database, Query
from shared.telemetry.metrics import Registry
from tests.doubles.litellm import Script, error_body
from tests.services.auth.admin.conftest import ADMIN, ADMIN_SETTINGS, bearer
from tests.services.auth.conftest import UID
from tests.services.gateway.firefox.clients import Answer, chat, desktop, send
from tests.services.gateway.firefox.conftest import KEY, Door, StartDoor

_BLOCK = Query.text("insert into identities (identity, blocked_at) values (:identity, now())")
_REVOKE = Query.text("update devices set revoked_at = now() where key_id = :key_id")


def coded(number: int) -> dict[str, Any]:
    return {"error": number, "detail": {"error": number}}


def assert_text(answer: Answer, status: int) -> None:
    body = answer.json()
    assert (answer.status, body) == (status, {"error": body["error"], "detail": {"error": body["error"]}})
    assert isinstance(body["error"], str)
    assert body["error"]


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_every_error_is_written_for_them(kind: type[GatewayError]) -> None:
    error = kind()
    answer = rendering.error_response(error)
    assert isinstance(answer.body, bytes)
    body, told = json.loads(answer.body), json.loads(rendering.error_event(error).removeprefix(b"data: "))["error"]
    assert answer.status == error.status
    if error.status == 401:
        assert body == {"detail": error.message}
    elif issubclass(kind, UserBlocked):
        assert body == {"detail": {"error": "User is blocked."}}
    else:
        assert body == {"error": told, "detail": {"error": told}}
    assert told == (kind.mlpa_code if kind.mlpa_code is not None else body.get("error", told))
    assert told, "a client takes nothing for no error"
    assert answer.headers.get("Retry-After", "1").isdigit()
    assert answer.headers.get("x-should-retry") == (None if error.should_retry is None else "false")


async def test_what_is_wrong_with_a_request_is_told_in_this_order(door: Door) -> None:
    token = door.auth.fxa_token()
    too_large = await door.desktop(None, service_type="nonsense", raw=b" " * (3 * 1024 * 1024 + 1))
    assert (too_large.status, too_large.json()) == (413, coded(3))
    missing = await door.desktop(None, service_type="nonsense")
    assert (missing.status, missing.json()) == (401, {"detail": "Missing authorization header"})
    assert door.count("desktop", "fxa", "refused") == 2
    unknown = await door.desktop("no token", service_type="nonsense")
    assert (unknown.status, unknown.json()) == (400, coded(9))
    bad = await door.desktop("a" * 64, chat("unknown"))
    assert (bad.status, bad.json()) == (401, {"detail": "Invalid FxA auth"})
    model = await door.desktop(token, chat("unknown"), service_type="strict", purpose="nonsense")
    assert (model.status, model.json()) == (400, coded(8))
    for purpose in ("nonsense", None):
        answer = await door.desktop(token, service_type="strict", purpose=purpose)
        assert (answer.status, answer.json()) == (400, coded(9))
    for body, number in ((chat("unknown", messages=7), 8), (chat("exa", n="x"), 8), (chat(n="x"), 9), ({"n": "x"}, 8)):
        answer = await door.desktop(token, body)
        assert (answer.status, answer.json()) == (400, coded(number)), body
    longer = chat(messages=[{"role": "user", "content": "x" * 500_000}])  # than the model's window
    for purpose, told in (("nonsense", (400, coded(9))), ("chat", (413, coded(3)))):
        answer = await door.desktop(token, longer, service_type="strict", purpose=purpose)
        assert (answer.status, answer.json()) == told
    malformed = await door.desktop(token, raw=b"{")
    assert (malformed.status, malformed.json()) == (400, coded(9))
    assert not door.double.asked


async def test_a_model_of_other_rows_alone_is_refused(door: Door) -> None:
    token = door.auth.fxa_token()
    answer = await door.desktop(token, chat("exa"))
    assert (answer.status, answer.json()) == (400, coded(8))
    assert (await door.desktop(token, chat("exa"), service_type="answer", purpose=None)).status == 200


async def test_a_token_that_is_not_for_the_service_type_is_a_403(door: Door) -> None:
    assert_text(await door.desktop(door.auth.fxa_token(scopes=("openid",))), 403)
    assert_text(await door.desktop(door.auth.fxa_token(), service_type="s2s"), 403)
    assert_text(await door.ios(await door.device(), service_type="ai"), 403)
    assert door.count("desktop", "fxa", "refused") == 2


async def test_when_all_places_are_taken_it_is_error_four(door: Door) -> None:
    for number in range(3):
        assert (await door.desktop(door.auth.fxa_token(uid=f"{number:032x}"))).status == 200
    full = await door.desktop(door.auth.fxa_token(uid="f" * 32), service_type="memories", purpose=None)
    assert (full.status, full.json()) == (403, coded(4))


async def test_a_blocked_user_and_a_revoked_device_are_refused(door: Door, postgres_url: str) -> None:
    device = await door.device()
    async with Database.connect(postgres_url) as database:
        await database.execute(_BLOCK, identity=UID)
        await database.execute(_REVOKE, key_id=device.key_id_b64)
    blocked = await door.desktop(door.auth.fxa_token())
    assert (blocked.status, blocked.json()) == (403, {"detail": {"error": "User is blocked."}})
    assert_text(await door.ios(device), 403)


async def test_a_block_reaches_a_remembered_token_within_a_second(start_door: StartDoor) -> None:
    door = await start_door(auth_settings=ADMIN_SETTINGS)
    token = door.auth.fxa_token()
    assert (await door.desktop(token)).status == 200
    path = f"/user/{UID}%3Aai/block"
    assert (await door.auth.ask("POST", path, headers=bearer(ADMIN)))[0] == 200
    for body in (chat(), chat("unknown"), chat(n="x"), chat(messages=[{"role": "user", "content": "x" * 500_000}])):
        blocked = await door.desktop(token, body)
        assert (blocked.status, blocked.json()) == (403, {"detail": {"error": "User is blocked."}})
    assert len(door.between.asked) == 1
    assert (await door.auth.ask("POST", path.replace("block", "unblock"), headers=bearer(ADMIN)))[0] == 200
    assert (await door.desktop(token)).status == 200


async def test_rates_and_budgets_have_their_numbers(door: Door) -> None:
    token = door.auth.fxa_token()
    first, second = [await door.desktop(token, service_type="few", purpose=None) for _ in range(2)]
    assert (first.status, second.status, second.json()) == (200, 429, coded(2))
    assert 1 <= int(second.headers["retry-after"]) <= 60
    poor = await door.desktop(token, service_type="poor", purpose=None)
    assert (poor.status, poor.json()) == (429, coded(1))
    assert (poor.headers["x-should-retry"], int(poor.headers["retry-after"]) > 60) == ("false", True)


async def test_errors_of_litellm_have_their_numbers(door: Door) -> None:
    token = door.auth.fxa_token()
    for status, body, answered, number in (
        (429, error_body("slow", "throttling_error", "429"), 429, 5),
        (400, error_body("ContextWindowExceededError: too long", "invalid_request_error", "400"), 413, 3),
        (401, error_body("no such key", "auth_error", "token_not_found_in_db"), 503, 10),
        (500, error_body("broken", None, "500"), 502, None),
    ):
        for stream in (False, True):
            door.double.script("gpt", Script.json(body, status))
            answer = await door.desktop(token, chat(stream=stream, tools=[]))
            if number is None:
                assert_text(answer, answered)
            else:
                assert (answer.status, answer.json()) == (answered, coded(number))


async def test_many_exchanges_of_one_client_are_error_two(start_door: StartDoor) -> None:
    door = await start_door(auth_settings={"exchange_limit_per_identity": 2}, trusted_proxies=1)
    device = await door.device()
    answers = [await door.ios(device) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[2].json() == coded(2)
    assert int(answers[2].headers["retry-after"]) >= 1


async def test_a_wrong_exchange_key_lets_no_ios_in_and_others_still_chat(start_door: StartDoor) -> None:
    door = await start_door(exchange_key="another-secret-of-the-gateway-01234567")
    assert (await door.desktop(door.auth.fxa_token())).status == 200
    answer = await door.ios(await door.device())
    assert (answer.status, answer.json()) == (401, {"detail": "Invalid App Attest auth"})


async def test_a_gateway_learns_whether_auth_knows_its_key(door: Door) -> None:
    for key, known in ((KEY, True), (KEY[1:], False)):
        exchanges = Exchanges(door.session, Registry(), auth_url=door.auth.url, key=key.encode())
        assert await exchanges.known() is known


async def test_a_refusal_is_remembered_for_a_moment_and_an_outage_is_not(door: Door) -> None:
    for _ in range(5):
        assert (await door.desktop("a" * 64)).status == 401
    assert len(door.between.asked) == 1
    assert (await door.desktop("b" * 64)).status == 401
    assert len(door.between.asked) == 2

    async def down(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "temporarily_unavailable"}, status=503, headers={"Retry-After": "7"})

    door.between.fault = down
    token = door.auth.fxa_token()
    answer = await door.desktop(token)
    assert_text(answer, 503)
    assert answer.headers["retry-after"] == "7"
    door.between.fault = None
    assert (await door.desktop(token)).status == 200


async def _reset(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError


async def test_an_auth_that_does_not_answer_is_a_503_and_never_a_401(door: Door) -> None:
    remembered, device = door.auth.fxa_token(), await door.device()
    assert (await door.desktop(remembered)).status == 200

    def answering(status: int) -> Any:
        async def fault(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, text="what is this?")

        return fault

    for times, fault in enumerate((_reset, *map(answering, (502, 500, 404, 401, 403, 200))), 1):
        door.between.fault = fault
        for refused in (await door.desktop(door.auth.fxa_token(uid="1" * 32)), await door.ios(device)):
            assert_text(refused, 503)
            assert int(refused.headers["retry-after"]) >= 1, times
        assert (await door.desktop(remembered)).status == 200, times
        assert door.count("ios", "app_attest_request", "failure") == times


async def test_an_assertion_is_exchanged_once_although_auths_answer_is_lost(door: Door) -> None:
    device = await door.device()
    door.between.fault = _reset
    for ask in (lambda: door.ios(device), lambda: door.desktop(door.auth.fxa_token(uid="2" * 32))):
        assert_text(await ask(), 503)
    kinds = [form["subject_token_type"].rpartition(":")[2] for _, form in door.between.asked]
    assert kinds == ["app-attest-request", "access_token", "access_token"]


async def test_a_granted_token_that_the_gateway_cannot_verify_is_a_503_and_never_a_401(start_door: StartDoor) -> None:
    door = await start_door(mlpa_issuer="http://127.0.0.1:1")
    for answer in (await door.desktop(door.auth.fxa_token()), await door.ios(await door.device())):
        assert_text(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1


async def test_bytes_that_no_token_has_are_a_401_and_go_nowhere(door: Door) -> None:
    for path in ("/v1/chat/completions", "/v1/models"):
        for token in (b"\xff", b"a\xc3(b", "\u00e9\U0001f98a".encode(), b"\xed\xa0\x80"):
            sent = desktop("TOKEN", chat(), path=path).replace(b"TOKEN", token)
            answer = await send(door.port, sent if "chat" in path else sent.replace(b"POST", b"GET", 1))
            assert (answer.status, answer.json()) == (401, {"detail": "Invalid FxA auth"}), (path, token)
    assert not door.between.asked


async def test_fxa_away_is_a_503_and_those_remembered_still_chat(door: Door) -> None:
    remembered = door.auth.fxa_token(kind="opaque")
    assert (await door.desktop(remembered)).status == 200
    door.auth.fxa.faults.set(Fault("verify", "respond", status=503))
    assert_text(await door.desktop(door.auth.fxa_token(uid="2" * 32, kind="opaque")), 503)
    assert (await door.desktop(remembered)).status == 200


async def test_redis_away_is_a_503_on_either_service(start_door: StartDoor, unused_port: int) -> None:
    nobody = f"redis://127.0.0.1:{unused_port}/0"
    door = await start_door(redis_url=nobody)
    device = await door.device()
    for answer in (await door.desktop(door.auth.fxa_token()), await door.ios(device)):
        assert_text(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
    door = await start_door(auth_settings={"redis_url": nobody})
    assert (await door.desktop(door.auth.fxa_token(kind="jwt"))).status == 200, "auth knows FxA's keys"
    assert_text(await door.ios(device), 503)


async def test_a_remembered_token_of_a_key_that_was_withdrawn_is_exchanged_again(
    start_door: StartDoor, tmp_path: Path
) -> None:
    door = await start_door()
    token = door.auth.fxa_token()
    assert (await door.desktop(token)).status == 200
    _, first, _ = await door.auth.ask("GET", "/.well-known/jwks.json")
    (made,) = (tmp_path / "keys").glob("*.pem")
    old = made.rename(made.with_name("20200101T000000Z.pem"))  # keys are named by the second
    rotated = CliRunner().invoke(cli, ["keys", "rotate", "--now", "--out", str(tmp_path / "keys")])
    assert rotated.exit_code == 0, rotated.output
    old.unlink()
    door.auth.apps.main[KEY_RING].refresh()
    _, keys, _ = await door.auth.ask("GET", "/.well-known/jwks.json")
    assert {key["kid"] for key in keys["keys"]}.isdisjoint(key["kid"] for key in first["keys"])
    # the gateway reads the set again for a key that it does not know
    other = await door.access_token("ai", uid="3" * 32)
    assert (await door.desktop(other, service_type=None)).status == 200
    assert (await door.desktop(token)).status == 200
    assert len(door.between.asked) == 2
