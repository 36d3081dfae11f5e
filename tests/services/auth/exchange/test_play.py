"""Installs from Google Play, exchanged at auth with the stand-in for Google."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.auth.tokens.key_ring import create_key
from services.cli.client import GRANT_TYPE
from services.local.faults import Fault
from services.local.play import PACKAGE, Install, InstallOrder, StandIn
from services.local.valkey import ValkeyServer
from shared.domain import tokens
from shared.domain.identity import Credential
from shared.stores.postgres import Database, Query
from tests.services.auth.conftest import Auth, StartAuth, many
from tests.support.google import google
from tests.support.service_types import toml

TYPE = Credential.PLAY.subject_token_type
_BLOCK = Query.text("insert into identities (identity, blocked_at) values (:identity, now())")
_UNBLOCK = Query.text("update identities set blocked_at = null")
_REVOCATIONS = Query.text("select extract(epoch from expires_at - now()) as seconds from revocations")


@dataclass
class Play:
    """A running auth that takes installs, and Google."""

    auth: Auth
    google: StandIn

    def body(self, install: Install, **order: Any) -> dict[str, Any]:
        """What an install sends, with an integrity token as ordered."""
        given = {"request_hash": install.request_hash, "package": install.package, **order}
        return {
            "user_id": install.user_id,
            "integrity_token": self.google.mint(InstallOrder(**given)),
            "package_name": install.package,
        }

    async def verify(self, body: Any, **headers: str) -> tuple[int, Any, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.auth.ask(
            "POST", "/verify/play", data=raw, headers=headers, skip_auto_headers=["Content-Type"]
        )

    async def exchange(self, body: Any, scope: str = "s2s") -> tuple[int, Any]:
        subject = base64.urlsafe_b64encode(json.dumps(body).encode()).decode()
        return await self.auth.exchange(subject, TYPE, scope)

    def count(self, metric: str, **labels: str) -> float:
        name = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        [line] = [
            line
            for line in self.auth.registry.render().decode().splitlines()
            if line.startswith(f"{metric}{{{name}}} ")
        ]
        return float(line.rpartition(" ")[2])


StartPlay = Callable[..., Awaitable[Play]]


@pytest.fixture
async def start_play(start_auth: StartAuth, tmp_path: Path) -> AsyncIterator[StartPlay]:
    async with google(tmp_path) as (stand_in, given):

        async def start(**settings: Any) -> Play:
            return Play(await start_auth(**{**given, **settings}), stand_in)

        yield start


@pytest.fixture
async def play(start_play: StartPlay) -> Play:
    return await start_play()


async def test_an_install_gets_a_token_of_a_day(play: Play) -> None:
    install = Install()
    status, body, headers = await play.verify(play.body(install))
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert body == {"access_token": body["access_token"], "token_type": "Bearer", "expires_in": 86400}
    claims = tokens.claims_of(body["access_token"])
    assert (claims.sub, claims.scope, claims.amr) == (f"{install.user_id}:s2s", "s2s", ("play",))
    assert (claims.client_id, claims.exp - claims.iat) == (PACKAGE, 86400)
    assert play.count("tokens_issued_total", amr="play", service_type="s2s") == 1


async def test_the_content_type_does_not_matter(play: Play) -> None:
    for content_type in (None, "application/json", "text/plain", "application/x-www-form-urlencoded", "x"):
        headers = {"Content-Type": content_type} if content_type else {}
        assert (await play.verify(play.body(Install()), **headers))[0] == 200, content_type


async def test_the_token_endpoint_takes_the_same(play: Play) -> None:
    install = Install()
    status, body = await play.exchange(play.body(install))
    assert (status, body["scope"], body["expires_in"]) == (200, "s2s", 86400)
    assert tokens.claims_of(body["access_token"]).sub == f"{install.user_id}:s2s"


_HEX = "2f1a6c1e8d0b4f579f0c3b6f1f3c9a10"
_UUID = "2f1a6c1e-8d0b-4f57-9f0c-3b6f1f3c9a10"


NOT_UUIDS: list[Any] = [
    _HEX,
    f"{{{_UUID}}}",
    f"urn:uuid:{_UUID}",
    f" {_UUID}",
    f"{_UUID}\n",
    _UUID.replace("-", ""),
    _UUID.replace("-", "_"),
    _UUID[:-1],
    f"{_UUID}0",
    _UUID.replace("a", "g"),
    _UUID.replace("1", "\u0661"),
    f"{_UUID}:s2s",
    "",
    None,
    5,
    [_UUID],
]


async def test_an_id_that_is_not_a_uuid_is_400_and_nobody_is_asked(play: Play) -> None:
    for user_id in NOT_UUIDS:
        made = hashlib.sha256(str(user_id).encode()).hexdigest()
        body = {**play.body(Install(), request_hash=made), "user_id": user_id}
        status, answer, _ = await play.verify(body)
        assert (status, answer["error"]) == (400, "invalid_request"), user_id
        status, answer = await play.exchange(body)
        assert (status, answer["error"]) == (400, "invalid_request"), user_id
    assert play.google.faults.calls["decode"] == 0


async def test_an_id_in_upper_case_is_the_same_install(play: Play) -> None:
    for user_id in (_UUID.upper(), _UUID, _UUID.title()):
        status, body, _ = await play.verify(play.body(Install(user_id)))
        assert status == 200
        assert tokens.claims_of(body["access_token"]).sub == f"{_UUID}:s2s"


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b'{"user_id":"%b"}' % _UUID.encode(),
    b'{"integrity_token":"t"}',
    b'{"user_id":"%b","integrity_token":""}' % _UUID.encode(),
    b'{"user_id":"%b","integrity_token":"t t"}' % _UUID.encode(),
    b'{"user_id":"%b","integrity_token":"t\\n"}' % _UUID.encode(),
    b'{"user_id":"%b","integrity_token":"\\ud800"}' % _UUID.encode(),
    b'{"user_id":"%b","integrity_token":"t","integrity_token":"u"}' % _UUID.encode(),
    b'{"user_id":"%b","integrity_token":"t","package_name":5}' % _UUID.encode(),
    b'{"user_id":"%b","integrity_token":"t","service_type":[]}' % _UUID.encode(),
    b'{"user_id":"%b","integrity_token":"%b"}' % (_UUID.encode(), b"t" * 40_000),
    b"[" * 45_000,
]


async def test_a_malformed_body_is_400(play: Play) -> None:
    for raw in MALFORMED:
        status, body, _ = await play.verify(raw)
        assert (status, body["error"]) == (400, "invalid_request"), raw[:100]
        subject = base64.urlsafe_b64encode(raw).decode() or "AAAA"
        status, body = await play.auth.exchange(subject, TYPE, "s2s")
        assert (status, body["error"]) == (400, "invalid_request"), raw[:100]
    assert play.google.faults.calls["decode"] == 0


REJECTIONS: list[tuple[str, dict[str, Any]]] = [
    ("request_hash", {"request_hash": Install().request_hash}),
    ("request_hash", {"request_hash": None}),
    ("age", {"age": 640}),
    ("age", {"age": -60}),
    ("recognition", {"recognition": "UNRECOGNIZED_VERSION"}),
    ("recognition", {"recognition": "UNEVALUATED"}),
    ("package", {"app_package": "org.example.other"}),
    ("certificate", {"certificates": ()}),
    ("certificate", {"certificates": ("A" * 43,)}),
    ("device", {"device": ()}),
    ("device", {"device": ("MEETS_BASIC_INTEGRITY",)}),
    ("device", {"device": ("MEETS_VIRTUAL_INTEGRITY",)}),
]


async def test_a_failed_check_is_401_and_its_step_is_counted_but_not_told(play: Play) -> None:
    for step, order in REJECTIONS:
        install = Install()
        before = play.count("play_rejections_total", step=step)
        status, body, headers = await play.verify(play.body(install, **order))
        assert (status, body["error"]) == (401, "integrity_rejected"), order
        assert headers["WWW-Authenticate"].startswith("PlayIntegrity")
        assert step not in body["error_description"]
        status, body = await play.exchange(play.body(install, **order))
        assert (status, body["error"]) == (400, "invalid_request"), order
        assert play.count("play_rejections_total", step=step) == before + 2, order


async def test_an_app_that_is_not_ours_is_rejected_and_google_is_not_asked(play: Play) -> None:
    status, _, _ = await play.verify(play.body(Install(package="org.example.other")))
    assert (status, play.count("play_rejections_total", step="package")) == (401, 1)
    assert play.google.faults.calls["decode"] == 0


async def test_a_token_of_another_of_our_apps_is_rejected(start_play: StartPlay) -> None:
    play = await start_play(play_packages=f"{PACKAGE},org.mozilla.firefox")
    body = play.body(Install())
    assert (await play.verify({**body, "package_name": "org.mozilla.firefox"}))[0] == 401  # Google: 400
    assert play.count("play_rejections_total", step="token") == 1
    install = Install(package="org.mozilla.firefox")
    payload = play.google.payload(InstallOrder(install.request_hash, package=PACKAGE))
    body = {**play.body(install), "integrity_token": play.google.mint_payload(install.package, payload)}
    assert (await play.verify(body))[0] == 401
    assert play.count("play_rejections_total", step="package") == 1


async def test_the_package_may_be_missing_where_there_is_one_app(play: Play, start_play: StartPlay) -> None:
    for absent in ({}, {"package_name": None}):
        body = play.body(Install())
        del body["package_name"]
        assert (await play.verify({**body, **absent}))[0] == 200
    several = await start_play(play_packages=f"{PACKAGE},org.mozilla.firefox")
    body = several.body(Install())
    assert (await several.verify(body))[0] == 200
    del body["package_name"]
    status, answer, _ = await several.verify(body)
    assert (status, answer["error"]) == (400, "invalid_request")


GOOD = {
    "requestDetails": {"requestPackageName": PACKAGE, "timestampMillis": "0", "requestHash": "x"},
    "appIntegrity": {"appRecognitionVerdict": "PLAY_RECOGNIZED"},
}


SHAPES: list[Any] = [
    5,
    [],
    {},
    "text",
    {**GOOD, "requestDetails": None},
    {**GOOD, "requestDetails": {"requestPackageName": PACKAGE}},
    {**GOOD, "requestDetails": {"requestPackageName": 1, "timestampMillis": "0"}},
    {**GOOD, "requestDetails": {"requestPackageName": PACKAGE, "timestampMillis": "soon"}},
    {**GOOD, "requestDetails": {"requestPackageName": PACKAGE, "timestampMillis": True}},
    {**GOOD, "requestDetails": {"requestPackageName": PACKAGE, "timestampMillis": "9" * 400}},
    {**GOOD, "requestDetails": {"requestPackageName": PACKAGE, "timestampMillis": -1}},
    {**GOOD, "appIntegrity": []},
    {**GOOD, "appIntegrity": {}},
    {**GOOD, "deviceIntegrity": {"deviceRecognitionVerdict": "MEETS_DEVICE_INTEGRITY"}},
    {**GOOD, "testingDetails": {"isTestingResponse": "false"}},
]


async def test_a_payload_of_another_shape_is_rejected(play: Play) -> None:
    for number, payload in enumerate(SHAPES, 1):
        body = {**play.body(Install()), "integrity_token": play.google.mint_payload(PACKAGE, payload)}
        assert (await play.verify(body))[0] == 401, payload
        assert play.count("play_rejections_total", step="payload") == number, payload


async def test_a_testers_verdict_counts_in_debug_alone(start_play: StartPlay, tmp_path: Path) -> None:
    play = await start_play()
    assert (await play.verify(play.body(Install(), testing=True)))[0] == 200
    table = tmp_path / "types.toml"
    table.write_text(toml("s2s", credentials=["play"]))
    create_key(tmp_path / "keys", activate_at=0)
    production = await start_play(
        mlpa_debug=False,
        service_types=table,
        challenge_secret="c" * 40,
        fxa_cache_secret="f" * 40,
        erasure_secret="e" * 40,
        fxa_issuer="http://127.0.0.1",
    )
    assert (await production.verify(production.body(Install(), testing=True)))[0] == 401
    assert production.count("play_rejections_total", step="testing") == 1
    assert (await production.verify(production.body(Install())))[0] == 200


@pytest.mark.parametrize(
    ("level", "accepted"),
    [
        ("basic", ["MEETS_BASIC_INTEGRITY", "MEETS_DEVICE_INTEGRITY", "MEETS_STRONG_INTEGRITY"]),
        ("device", ["MEETS_DEVICE_INTEGRITY", "MEETS_STRONG_INTEGRITY"]),
        ("strong", ["MEETS_STRONG_INTEGRITY"]),
    ],
)
async def test_the_row_says_how_much_integrity_a_device_needs(
    start_play: StartPlay, tmp_path: Path, level: str, accepted: list[str]
) -> None:
    table = tmp_path / "types.toml"
    table.write_text(toml("s2s", credentials=["play"], play_integrity=level))
    play = await start_play(service_types=table)
    labels = ["MEETS_BASIC_INTEGRITY", "MEETS_DEVICE_INTEGRITY", "MEETS_STRONG_INTEGRITY", "MEETS_VIRTUAL_INTEGRITY"]
    assert [
        label for label in labels if (await play.verify(play.body(Install(), device=(label,))))[0] == 200
    ] == accepted


async def test_an_integrity_token_is_good_once(play: Play) -> None:
    body = play.body(Install())
    assert (await play.verify(body))[0] == 200
    asked = play.google.faults.calls["decode"]
    assert (await play.verify(body))[0] == 401
    assert (await play.exchange(body))[0] == 400
    assert (await play.verify({**body, "integrity_token": body["integrity_token"] + "="}))[0] == 401
    assert play.count("play_rejections_total", step="used") == 3
    assert play.google.faults.calls["decode"] == asked, "Google's quota is not spent on it"
    assert (await play.verify(play.body(Install(body["user_id"]))))[0] == 200, "another one of the same install"


async def test_of_many_at_once_with_one_integrity_token_one_gets_through(play: Play) -> None:
    body = play.body(Install())
    answers = await many(20, lambda _: play.verify(body))
    assert Counter(status for status, _, _ in answers) == {200: 1, 401: 19}
    assert play.google.faults.calls["decode"] <= 3, "callers share a question"


async def test_what_was_refused_for_another_reason_is_not_used_up(play: Play, database: Database) -> None:
    install = Install()
    body = play.body(install)
    await database.execute(_BLOCK, identity=install.user_id)
    status, answer, _ = await play.verify(body)
    assert (status, answer["error"]) == (403, "access_denied")
    other = play.body(Install())
    play.google.faults.set(Fault("decode", "respond", status=500))
    assert (await play.verify(other))[0] == 503
    play.google.faults.clear()
    assert (await play.verify(other))[0] == 200


async def test_a_full_service_type_is_403(start_play: StartPlay, tmp_path: Path) -> None:
    table = tmp_path / "types.toml"
    table.write_text(toml("s2s", credentials=["play"], max_users=1))
    play = await start_play(service_types=table)
    assert (await play.verify(play.body(Install())))[0] == 200
    status, body, _ = await play.verify(play.body(Install()))
    assert (status, body["error"]) == (403, "max_users_reached")


async def test_the_service_type_may_be_missing_where_one_takes_installs(start_play: StartPlay, tmp_path: Path) -> None:
    table = tmp_path / "types.toml"
    table.write_text("\n".join(toml(name, credentials=["play"]) for name in ("s2s-android", "answer")) + toml("ai"))
    play = await start_play(service_types=table)

    async def ask(**more: Any) -> tuple[int, str]:
        status, body, _ = await play.verify({**play.body(Install()), **more})
        return status, body.get("error") or tokens.claims_of(body["access_token"]).scope

    assert await ask() == (400, "invalid_scope")
    assert await ask(service_type="answer") == (200, "answer")
    assert await ask(service_type="s2s-android") == (200, "s2s-android")
    assert await ask(service_type="ai") == (400, "invalid_scope")
    assert await ask(service_type="other") == (400, "invalid_scope")
    status, _ = await play.exchange({**play.body(Install()), "service_type": "answer"}, "s2s-android")
    assert status == 400, "the form names another one"


NO_ANSWERS: list[tuple[int, str | None, str]] = [
    (401, None, "status"),
    (403, None, "status"),
    (404, None, "status"),
    (429, None, "rate_limited"),
    (500, None, "status"),
    (503, "overloaded", "status"),
    (302, "", "status"),
    (200, "", "malformed"),
    (200, "<html>", "malformed"),
    (200, "[]", "malformed"),
    (200, "{}", "malformed"),
    (200, '{"tokenPayloadExternal":null}', "malformed"),
    (200, '{"tokenPayloadExternal":{},"tokenPayloadExternal":{}}', "malformed"),
    (200, "{" + " " * 70_000 + "}", "too_large"),
    (200, "[" * 30_000, "malformed"),
]


async def test_what_google_does_not_answer_is_503_and_never_the_installs_fault(play: Play) -> None:
    for status, text, reason in NO_ANSWERS:
        sent = play.body(Install())
        before = play.count("play_google_requests_total", endpoint="decode", result=reason)
        play.google.faults.set(Fault("decode", "respond", status=status, body=text))
        answered, answer, headers = await play.verify(sent)
        assert (answered, answer["error"], headers["Retry-After"]) == (503, "temporarily_unavailable", "1"), text
        assert (await play.exchange(sent))[0] == 503
        assert play.count("play_google_requests_total", endpoint="decode", result=reason) == before + 2, (status, text)
        play.google.faults.clear()
        assert (await play.verify(sent))[0] == 200
    assert play.count("dependency_errors_total", dependency="play") == 2 * len(NO_ANSWERS)


async def test_tokens_for_another_project_do_not_shut_out_others(play: Play) -> None:
    for _ in range(8):
        assert (await play.verify(play.body(Install(), foreign=True)))[0] == 503
    assert (await play.verify(play.body(Install())))[0] == 200


async def test_googles_400_is_the_installs_fault(play: Play) -> None:
    assert (await play.verify({**play.body(Install()), "integrity_token": "junk"}))[0] == 401
    assert play.count("play_google_requests_total", endpoint="decode", result="refused") == 1
    assert play.count("play_rejections_total", step="token") == 1


async def test_silence_is_503_after_five_seconds(start_auth: StartAuth, tmp_path: Path) -> None:
    async def silent(endpoint: Any) -> list[int]:
        (folder := tmp_path / endpoint).mkdir()
        async with google(folder) as (stand_in, given):
            play = Play(await start_auth(**given), stand_in)
            sent = play.body(Install())
            stand_in.faults.set(Fault(endpoint, kind="hang"))
            statuses = [(await play.verify(sent))[0]]
            stand_in.faults.clear()
            return [*statuses, (await play.verify(sent))[0]]

    assert await asyncio.gather(silent("decode"), silent("token")) == [[503, 200]] * 2


NO_TOKENS = [
    (400, '{"error":"invalid_grant"}'),
    (401, ""),
    (500, "{}"),  # is repeated by the library for three seconds, as a 429 is
    *([(429, "[]")] if os.environ.get("MLPA_TEST_FULL") else []),
    (200, "junk"),
    (200, "[]"),
    (200, '{"token_type":"Bearer"}'),
    (200, "\xff"),
]


async def test_without_an_access_token_of_ours_it_is_503(start_play: StartPlay) -> None:
    for answers in (NO_TOKENS[:4], NO_TOKENS[4:]):  # at the fifth failure the breaker opens
        play = await start_play()
        sent = play.body(Install())
        for number, (status, text) in enumerate(answers, 1):
            asked = play.google.faults.calls["token"]
            play.google.faults.set(Fault("token", "respond", status=status, body=text))
            assert (await play.verify(sent))[0] == 503, text
            assert play.google.faults.calls["token"] > asked, text
            assert play.count("play_google_requests_total", endpoint="decode", result="not_sent") == number
    for _ in range(4):
        assert (await play.verify(sent))[0] == 503
    assert play.google.faults.calls["decode"] == 0
    assert play.google.faults.calls["token"] < 20, "the breaker spares Google"


async def test_nobody_at_googles_address_is_503(start_play: StartPlay, unused_port: int) -> None:
    play = await start_play(play_base_url=f"http://127.0.0.1:{unused_port}")
    assert (await play.verify(play.body(Install())))[0] == 503
    assert play.count("play_google_requests_total", endpoint="decode", result="connection") == 1


async def test_a_spent_quota_is_503_until_google_says_otherwise(play: Play) -> None:
    play.google.quota = 1
    assert (await play.verify(play.body(Install())))[0] == 200
    sent = play.body(Install())
    assert (await play.verify(sent))[0] == 503
    assert play.count("play_google_requests_total", endpoint="decode", result="rate_limited") == 1
    play.google.quota = 1
    assert (await play.verify(sent))[0] == 200


async def test_google_is_left_alone_for_as_long_as_it_asks(play: Play) -> None:
    play.google.faults.set(Fault("decode", "respond", status=429, headers={"Retry-After": "120"}))
    for waits in ("120", "120", "120"):
        _, _, headers = await play.verify(play.body(Install()))
        assert int(headers["Retry-After"]) <= int(waits)
    assert play.google.faults.calls["decode"] == 1
    assert play.count("play_google_requests_total", endpoint="decode", result="not_sent") == 2


async def test_one_access_token_serves_many_and_a_withdrawn_one_is_replaced(play: Play) -> None:
    answers = await many(10, lambda _: play.verify(play.body(Install())))
    assert [status for status, _, _ in answers] == [200] * 10
    assert play.google.faults.calls["token"] == 1
    play.google.withdraw_access()
    sent = play.body(Install())
    assert [(await play.verify(sent))[0] for _ in range(2)] == [503, 200]
    assert play.google.faults.calls["token"] == 2


async def test_a_source_gets_google_asked_so_often_and_no_more(start_play: StartPlay) -> None:
    play = await start_play(play_limit_per_source=3)
    junk = {"user_id": _UUID, "integrity_token": "junk"}
    assert [(await play.verify(junk))[0] for _ in range(3)] == [401] * 3
    status, body, headers = await play.verify(play.body(Install()))
    assert (status, body["error"]) == (429, "slow_down")
    assert 1 <= int(headers["Retry-After"]) <= 120
    assert play.google.faults.calls["decode"] == 3


async def test_without_redis_nobody_gets_in_and_google_is_not_asked(
    start_play: StartPlay, own_valkey: ValkeyServer
) -> None:
    play = await start_play(redis_url=own_valkey.url)
    sent = play.body(Install())
    own_valkey.kill()
    status, body, _ = await play.verify(sent)
    assert (status, body["error"], play.google.faults.calls["decode"]) == (503, "temporarily_unavailable", 0)
    own_valkey.start()
    assert (await play.verify(sent))[0] == 200


async def test_a_token_of_a_day_can_be_revoked_until_it_ends(play: Play, database: Database) -> None:
    _, body, _ = await play.verify(play.body(Install()))
    status, _, _ = await play.auth.ask("POST", "/revoke", data={"token": body["access_token"]})
    assert status == 200
    row = await database.fetch_one(_REVOCATIONS)
    assert row is not None
    assert 86400 < row["seconds"] <= 86430


async def test_a_shorter_life_can_be_set(start_play: StartPlay) -> None:
    play = await start_play(play_token_ttl_seconds=600)
    _, body, _ = await play.verify(play.body(Install()))
    claims = tokens.claims_of(body["access_token"])
    assert (body["expires_in"], claims.exp - claims.iat) == (600, 600)


async def test_without_packages_there_is_no_way_in(auth: Auth) -> None:
    body = {"user_id": _UUID, "integrity_token": "t", "package_name": PACKAGE}
    status, _, _ = await auth.ask("POST", "/verify/play", json=body)
    assert status == 401


async def test_the_form_of_other_exchanges_stays_as_it_is(play: Play) -> None:
    """An FxA token under the name of this kind, and the other way round."""
    status, body = await play.auth.exchange(play.auth.fxa_token(), TYPE, "s2s")
    assert (status, body["error"]) == (400, "invalid_request")
    subject = base64.urlsafe_b64encode(json.dumps(play.body(Install())).encode()).decode()
    form = {"grant_type": GRANT_TYPE, "subject_token": subject, "scope": "s2s"}
    for other in set(Credential) - {Credential.PLAY}:
        status, _, _ = await play.auth.ask(
            "POST", "/token", data={**form, "subject_token_type": other.subject_token_type}
        )
        assert status == 400
