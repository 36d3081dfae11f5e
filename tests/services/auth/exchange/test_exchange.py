"""Credentials exchanged for tokens, and everything that must not be."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet as JoserfcKeySet

from services.auth.standing import storage as standing
from services.cli.client import ASSERTION
from services.local.fxa import TokenOrder
from shared.state.layout import Standing
from shared.stores.postgres import Database, Query
from tests.services.auth.conftest import BUNDLE, ISSUER, UID, Auth, StartAuth, many, subject_token
from tests.support.service_types import toml

_REVOKE_DEVICE = Query.text("update devices set revoked_at = now() where key_id = :key_id")
_COUNTER = Query.text("select counter, revoked_at from devices where key_id = :key_id")
_BLOCK = Query.text("insert into identities (identity, blocked_at) values (:identity, now())")
_CAPACITY = Query.text("select users from capacity where service_type = :service_type")


async def claims_of(auth: Auth, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, verified by another library than ours."""
    _, jwks, _ = await auth.ask("GET", "/.well-known/jwks.json")
    decoded = joserfc_jwt.decode(token, JoserfcKeySet.import_key_set(jwks), algorithms=["ES256"])
    return decoded.header, decoded.claims


async def test_an_fxa_token_becomes_an_access_token_of_rfc_9068(auth: Auth) -> None:
    status, body = await auth.exchange(auth.fxa_token())
    assert status == 200
    assert body == {
        "access_token": body["access_token"],
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "token_type": "Bearer",
        "expires_in": 300,
        "scope": "ai",
    }
    header, claims = await claims_of(auth, body["access_token"])
    assert (header["alg"], header["typ"]) == ("ES256", "at+jwt")
    assert claims["exp"] - claims["iat"] == 300
    assert {name: claims[name] for name in ("iss", "aud", "sub", "scope", "amr")} == {
        "iss": ISSUER,
        "aud": "mlpa-gateway",
        "sub": f"{UID}:ai",
        "scope": "ai",
        "amr": ["fxa"],
    }
    assert claims["client_id"]
    assert claims["jti"]


async def test_a_key_that_was_never_enrolled_is_told_to_attest_again(auth: Auth) -> None:
    status, body = await auth.exchange_device(auth.device())
    assert (status, body["error"]) == (400, "invalid_request")
    assert "attest again" in body["error_description"]
    device = await auth.enrolled()
    device.key = auth.device().key
    _, body = await auth.exchange(await auth.assertion(device), ASSERTION)
    assert "attest again" in body["error_description"], "another key, so another id"


async def test_what_is_new_in_a_genuine_object_is_counted(auth: Auth) -> None:
    device = await auth.enrolled(bundle_version="1", validation_category=4, further={"apple_new_01": True, "more": b""})
    assert (await auth.exchange_device(device))[0] == 200
    device.validation_category, device.further = None, {}
    assert (await auth.exchange_device(device))[0] == 200
    shown = auth.registry.render().decode()
    assert 'app_attest_extensions_ignored_total{kind="unknown"} 4' in shown
    assert 'app_attest_extensions_ignored_total{kind="incomplete"} 1' in shown


async def test_an_fxa_token_is_exchanged_however_its_media_type_is_written(auth: Auth) -> None:
    for typ in ["at+JWT", "at+jwt", "application/AT+JWT"]:
        claims = auth.fxa.claims(TokenOrder(uid=UID, resource="https://service.test"))
        assert (await auth.exchange(auth.fxa.sign(claims, {"typ": typ})))[0] == 200, typ


async def test_a_slash_at_the_end_of_the_configured_issuer_does_not_count(start_auth: StartAuth) -> None:
    auth = await start_auth(fxa_issuer="http://fxa.test/")
    assert (await auth.exchange(auth.fxa_token()))[0] == 200


async def test_a_token_does_not_outlive_its_credential(auth: Auth) -> None:
    soon = auth.fxa.claims(TokenOrder(uid=UID, ttl=40))
    soon["exp"] += 0.9
    token = auth.fxa.sign(soon)
    for _ in range(2):  # from FxA's keys, then from the cache
        status, body = await auth.exchange(token)
        assert status == 200
        _, claims = await claims_of(auth, body["access_token"])
        assert claims["exp"] <= soon["exp"]
        assert 30 < body["expires_in"] == claims["exp"] - claims["iat"] <= 40
    status, body = await auth.exchange(auth.fxa_token(kind="opaque", ttl=40))
    assert (status, body["expires_in"]) == (200, 300), "FxA does not tell when an opaque token ends"


async def test_a_device_enrols_and_exchanges(auth: Auth) -> None:
    device = auth.device()
    assert await auth.enrol(device) == (201, {"status": "success"})
    status, body = await auth.exchange_device(device)
    assert status == 200
    _, claims = await claims_of(auth, body["access_token"])
    assert (claims["sub"], claims["client_id"], claims["amr"]) == (f"{device.key_id_b64}:ai", BUNDLE, ["app_attest"])


async def test_signed_client_data_must_be_meant_for_this_exchange(auth: Auth) -> None:
    device = await auth.enrolled()
    for changes in [
        {"typ": "other"},
        {"typ": None},
        {"aud": "http://elsewhere.test"},
        {"aud": None},
        {"scope": "s2s"},
        {"scope": None},
        {"challenge": None},
        {"challenge": 7},
        {"challenge": "0" * 64},
        {"challenge": "Z" * 64},
        {"challenge": ""},
    ]:
        status, body = await auth.exchange(await auth.assertion(device, **changes), ASSERTION)
        assert (status, body["error"]) == (400, "invalid_request"), changes


async def test_client_data_with_a_member_twice_is_refused(auth: Auth) -> None:
    device = await auth.enrolled()
    signed = {"typ": "mlpa-token-exchange", "aud": ISSUER, "scope": "ai", "challenge": await auth.challenge(device)}
    twice = json.dumps(signed)[:-1].encode() + b',"scope":"ai"}'
    status, body = await auth.exchange(subject_token(device, twice), ASSERTION)
    assert (status, body["error"]) == (400, "invalid_request")


async def test_a_challenge_of_another_key_is_refused(auth: Auth) -> None:
    device, other = auth.device(), auth.device()
    await auth.enrol(device)
    await auth.enrol(other)
    stolen = await auth.challenge(other)
    status, _ = await auth.exchange(await auth.assertion(device, challenge=stolen), ASSERTION)
    assert status == 400


async def test_a_challenge_that_enrolled_signs_no_exchange(auth: Auth) -> None:
    device = auth.device()
    challenge = await auth.challenge(device)
    status, _, _ = await auth.ask("POST", "/verify/attest", json=auth.attest_body(device, challenge))
    assert status == 201
    status, body = await auth.exchange(await auth.assertion(device, challenge=challenge), ASSERTION)
    assert (status, body["error"]) == (400, "invalid_request")


async def test_an_older_assertion_is_refused_after_a_newer_one(auth: Auth) -> None:
    device = await auth.enrolled()
    older, newer = await auth.assertion(device), await auth.assertion(device)
    assert (await auth.exchange(newer, ASSERTION))[0] == 200
    assert (await auth.exchange(older, ASSERTION))[0] == 400


def assert_one_wins(statuses: list[int], won: int, lost: int) -> None:
    """Never does more than one win. On a busy machine some of a crowd may be answered 503, even the one who won: its
    statement took too long, and the others have lost against it.
    """
    counts = Counter(statuses)
    assert counts[won] == 1 or (counts[won] == 0 and counts[503] and counts[lost]), counts
    assert set(counts) <= {won, lost, 503}


async def test_of_200_exchanges_with_one_assertion_exactly_one_wins(start_auth: StartAuth) -> None:
    auth = await start_auth(exchange_limit_per_source=0, exchange_limit_per_identity=0)
    device = await auth.enrolled()
    token = await auth.assertion(device)
    answers = await many(200, lambda _: auth.exchange(token, ASSERTION))
    assert_one_wins([status for status, _ in answers], 200, 400)


async def test_of_200_exchanges_with_one_challenge_exactly_one_wins(start_auth: StartAuth) -> None:
    auth = await start_auth(exchange_limit_per_source=0, exchange_limit_per_identity=0)
    device = await auth.enrolled()
    challenge = await auth.challenge(device)
    tokens = [await auth.assertion(device, challenge=challenge) for _ in range(200)]
    answers = await many(200, lambda index: auth.exchange(tokens[index], ASSERTION))
    assert_one_wins([status for status, _ in answers], 200, 400)


async def test_of_assertions_with_one_counter_exactly_one_wins(auth: Auth) -> None:
    device = await auth.enrolled()
    tokens = []
    for _ in range(8):
        device.counter = 4
        tokens.append(await auth.assertion(device))
    answers = await many(8, lambda index: auth.exchange(tokens[index], ASSERTION))
    assert_one_wins([status for status, _ in answers], 200, 400)


async def test_of_100_enrolments_with_one_challenge_exactly_one_wins(start_auth: StartAuth) -> None:
    auth = await start_auth(enroll_limit_per_source=0)
    device = auth.device()
    body = auth.attest_body(device, await auth.challenge(device))
    answers = await many(100, lambda _: auth.ask("POST", "/verify/attest", json=body))
    assert_one_wins([status for status, _, _ in answers], 201, 401)


async def test_attesting_again_neither_lowers_the_counter_nor_lifts_a_revocation(auth: Auth, postgres_url: str) -> None:
    device = await auth.enrolled()
    assert (await auth.exchange_device(device))[0] == 200
    async with Database.connect(postgres_url) as database:
        assert (await auth.enrol(device))[0] == 201
        assert (await database.fetch(_COUNTER, key_id=device.key_id_b64))[0]["counter"] == 1
        await database.execute(_REVOKE_DEVICE, key_id=device.key_id_b64)
        status, body = await auth.enrol(device)
        assert (status, body["error"]) == (403, "access_denied")
        assert (await database.fetch(_COUNTER, key_id=device.key_id_b64))[0]["revoked_at"] is not None
    status, body = await auth.exchange_device(device)
    assert (status, body["error"]) == (403, "access_denied")


async def test_revocation_is_told_only_to_the_holder_of_the_key(auth: Auth, postgres_url: str) -> None:
    device, thief = auth.device(), auth.device()
    await auth.enrol(device)
    async with Database.connect(postgres_url) as database:
        await database.execute(_REVOKE_DEVICE, key_id=device.key_id_b64)
    real = device.key
    device.key = thief.key  # signs with another key, under the revoked key's id
    challenge_holder = auth.device()
    challenge_holder.key = real
    challenge = await auth.challenge(challenge_holder)
    signed = {"typ": "mlpa-token-exchange", "aud": ISSUER, "scope": "ai", "challenge": challenge}
    impostor: Any = _Impostor(challenge_holder, thief)
    token = subject_token(impostor, json.dumps(signed).encode())
    status, body = await auth.exchange(token, ASSERTION)
    assert (status, body["error"]) == (400, "invalid_request")


class _Impostor:
    """Names one device's key, and signs with another's."""

    def __init__(self, named: Any, signer: Any) -> None:
        self.key_id_b64, self.bundle_id, self._signer = named.key_id_b64, named.bundle_id, signer

    def assert_(self, client_data: bytes) -> bytes:
        signed: bytes = self._signer.assert_(client_data)
        return signed


async def test_a_blocked_user_is_refused_after_the_credential_verified(auth: Auth, postgres_url: str) -> None:
    async with Database.connect(postgres_url) as database:
        await database.execute(_BLOCK, identity=UID)
    status, body = await auth.exchange(auth.fxa_token())
    assert (status, body["error"]) == (403, "access_denied")


async def test_of_newcomers_that_race_exactly_max_users_enter(
    start_auth: StartAuth, tmp_path: Any, postgres_url: str
) -> None:
    table = tmp_path / "types.toml"
    table.write_text(toml(max_users=20))
    auth = await start_auth(service_types=table, exchange_limit_per_source=0)
    number = 520 if os.environ.get("MLPA_TEST_FULL") else 150
    tokens = [auth.fxa_token(uid=f"{index:032x}") for index in range(number)]
    answers = await many(number, lambda index: auth.exchange(tokens[index]))
    statuses = Counter(status for status, _ in answers)
    assert statuses[200] <= 20
    assert set(statuses) <= {200, 403, 503}
    assert {body["error"] for status, body in answers if status == 403} == {"max_users_reached"}
    async with Database.connect(postgres_url) as database:
        assert (await database.fetch(_CAPACITY, service_type="ai"))[0]["users"] == 20
    # a 503 may belong to one who is in: all who are not refused ask again
    again = [token for token, (status, _) in zip(tokens, answers, strict=True) if status != 403]
    assert [(await auth.exchange(token))[0] for token in again].count(200) == 20


async def test_a_row_takes_only_its_kinds_of_credential(start_auth: StartAuth, tmp_path: Any) -> None:
    table = tmp_path / "types.toml"
    table.write_text(toml(credentials=["app_attest"]))
    auth = await start_auth(service_types=table)
    status, body = await auth.exchange(auth.fxa_token())
    assert (status, body["error"]) == (400, "invalid_scope")


async def test_an_fxa_token_without_the_rows_scope_is_an_invalid_scope(auth: Auth) -> None:
    status, body = await auth.exchange(auth.fxa_token(scopes=("openid",)))
    assert (status, body["error"]) == (400, "invalid_scope")


async def test_an_expired_fxa_token_is_an_invalid_request(auth: Auth) -> None:
    status, body = await auth.exchange(auth.fxa_token(ttl=-60))
    assert (status, body["error"]) == (400, "invalid_request")


async def test_the_standing_of_a_user_reads_block_and_revocation(auth: Auth, postgres_url: str) -> None:
    async with Database.connect(postgres_url) as database:
        assert (await standing.standing(database, UID))[0] is Standing.GOOD
        await database.execute(_BLOCK, identity=UID)
        assert (await standing.standing(database, UID))[0] is Standing.BLOCKED


async def test_a_device_of_development_ends_with_the_switch_to_production(start_auth: StartAuth) -> None:
    before = await start_auth()
    device = before.device()
    await before.enrol(device)
    assert (await before.exchange_device(device))[0] == 200
    after = await start_auth(app_attest_production=True)
    status, body = await after.exchange_device(device)
    assert (status, body["error"]) == (400, "invalid_request")
    genuine = after.device(environment="production")
    await after.enrol(genuine)
    assert (await after.exchange_device(genuine))[0] == 200
    assert (await before.exchange_device(genuine))[0] == 400
    assert (await before.exchange_device(device))[0] == 200, "it is refused, not revoked"
