"""The key set, the metadata and revocation."""

from __future__ import annotations

import base64
import time
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

import psycopg2

from services.auth.tokens.issuer import Issuer
from services.auth.tokens.key_ring import KEY_RING, KeyRing, create_key
from shared.state.layout import identity_key, token_key
from shared.stores.postgres import Database, Query
from shared.stores.redis import connect
from tests.services.auth.conftest import ISSUER, UID, Auth, StartAuth, many
from tests.support.waiting import until

_REVOKED = Query.text("select jti from revocations")
_PENDING = Query.text("select count(*) as n from redis_changes")


#: A JWT whose header is nested too deeply for a parser that recurses.
DEEP = base64.urlsafe_b64encode(b"[" * 1200).decode().rstrip("=") + f".e30.{'A' * 86}"


async def revoke(auth: Auth, **form: str) -> tuple[int, Any]:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    status, body, _ = await auth.ask("POST", "/revoke", data=urlencode(form), headers=headers)
    return status, body


async def revoked_in(redis_url: str) -> list[str]:
    async with connect(redis_url) as redis:
        return [key.decode() async for key in redis.scan_iter("mlpa:{*}:j:*")]


async def test_the_metadata_is_the_issuers(auth: Auth) -> None:
    status, body, _ = await auth.ask("GET", "/.well-known/oauth-authorization-server")
    assert status == 200
    assert body["issuer"] == ISSUER
    assert body["token_endpoint"] == f"{ISSUER}/token"
    assert body["jwks_uri"] == f"{ISSUER}/.well-known/jwks.json"
    assert body["token_endpoint_auth_methods_supported"] == ["none"]


async def test_the_key_set_is_public_and_cacheable(auth: Auth) -> None:
    status, body, headers = await auth.ask("GET", "/.well-known/jwks.json")
    assert (status, headers["Cache-Control"]) == (200, "max-age=300")
    assert all("d" not in key and key["alg"] == "ES256" for key in body["keys"])


async def test_without_any_signing_key_nothing_is_issued_and_readiness_fails(auth: Auth, tmp_path: Any) -> None:
    _, answer = await auth.exchange(auth.fxa_token())
    for path in (tmp_path / "keys").glob("*.pem"):
        path.unlink()

    async def unready() -> bool:
        return (await auth.ask("GET", "/health/readiness"))[0] == 503

    await until(unready, 15, pause=0.2)  # the folder is read every 5 s
    _, ready, _ = await auth.ask("GET", "/health/readiness")
    assert ready["checks"]["signing_key"]["status"] == "failed"
    status, body = await auth.exchange(auth.fxa_token())
    assert (status, body["error"]) == (503, "temporarily_unavailable")
    assert (await auth.ask("GET", "/.well-known/jwks.json"))[0] == 503
    assert (await revoke(auth, token=answer["access_token"]))[0] == 503, "nothing can be said of its signature"
    create_key(tmp_path / "keys", activate_at=time.time())
    auth.apps.main[KEY_RING].refresh()
    assert (await auth.exchange(auth.fxa_token()))[0] == 200


async def test_a_revoked_token_is_in_postgresql_and_redis(auth: Auth, redis_url: str, postgres_url: str) -> None:
    _, answer = await auth.exchange(auth.fxa_token())
    assert (await revoke(auth, token=answer["access_token"], token_type_hint="access_token"))[0] == 200
    assert (await revoke(auth, token=answer["access_token"]))[0] == 200, "twice is as good as once"
    async with Database.connect(postgres_url) as database:
        (row,) = await database.fetch(_REVOKED)
        assert (await database.fetch(_PENDING))[0]["n"] == 0
    assert await revoked_in(redis_url) == [token_key(UID, row["jti"])]


async def test_what_is_not_ours_is_answered_200_and_changes_nothing(auth: Auth, redis_url: str) -> None:
    for token in ["junk", "a.b.c", "x" * 5000, DEEP]:
        assert (await revoke(auth, token=token))[0] == 200, token
        assert await revoked_in(redis_url) == [], token


async def test_a_foreign_signature_and_an_expired_token_change_nothing(
    start_auth: StartAuth, redis_url: str, tmp_path: Any
) -> None:
    auth = await start_auth()
    create_key(tmp_path / "foreign", activate_at=0)
    foreign = Issuer(KeyRing(tmp_path / "foreign"), issuer=ISSUER, ttl=300)
    expired = Issuer(KeyRing(tmp_path / "keys"), issuer=ISSUER, ttl=-60)
    for issuer in (foreign, expired):
        token = issuer.issue(user_id=f"{UID}:ai", client_id="x", scope="ai", amr="fxa").text
        assert (await revoke(auth, token=token))[0] == 200
    assert await revoked_in(redis_url) == []


async def test_revoke_without_a_token_is_malformed(auth: Auth) -> None:
    status, body = await revoke(auth, other="x")
    assert (status, body["error"]) == (400, "invalid_request")


async def test_what_redis_missed_is_applied_when_it_is_back(
    start_auth: StartAuth, own_valkey: Any, postgres_url: str
) -> None:
    auth = await start_auth(redis_url=own_valkey.url)
    _, answer = await auth.exchange(auth.fxa_token())
    own_valkey.kill()
    status, body = await revoke(auth, token=answer["access_token"])
    assert (status, body["error"]) == (503, "temporarily_unavailable")
    async with Database.connect(postgres_url) as database:
        assert len(await database.fetch(_REVOKED)) == 1, "PostgreSQL took it"
        own_valkey.start()
        async with connect(own_valkey.url) as redis:
            while not [key async for key in redis.scan_iter("mlpa:{*}:j:*")]:
                await redis.ping()
        while (await database.fetch(_PENDING))[0]["n"]:
            await database.fetch(Query.text("select 1"))


async def test_revoking_again_writes_nothing(auth: Auth, redis_url: str) -> None:
    _, answer = await auth.exchange(auth.fxa_token())
    assert (await revoke(auth, token=answer["access_token"]))[0] == 200
    async with connect(redis_url) as redis:
        before = await redis.hget(identity_key(UID), "v")
        assert (await revoke(auth, token=answer["access_token"]))[0] == 200
        assert await redis.hget(identity_key(UID), "v") == before


async def test_a_token_is_revoked_until_the_slowest_clock_says_that_it_has_expired(
    auth: Auth, redis_url: str, tmp_path: Any
) -> None:
    just_expired = Issuer(KeyRing(tmp_path / "keys"), issuer=ISSUER, ttl=-5)
    token = just_expired.issue(user_id=f"{UID}:ai", client_id="x", scope="ai", amr="fxa").text
    assert (await revoke(auth, token=token))[0] == 200
    (key,) = await revoked_in(redis_url)
    async with connect(redis_url) as redis:
        assert 20 <= await redis.ttl(key) <= 30


async def test_revocations_are_limited_and_tokens_of_others_keep_nobody_from_revoking(start_auth: StartAuth) -> None:
    auth = await start_auth(revoke_limit_per_source=3)
    ours = [(await auth.exchange(auth.fxa_token()))[1]["access_token"] for _ in range(5)]
    assert [(await revoke(auth, token="junk"))[0] for _ in range(3)] == [200] * 3
    assert [(await revoke(auth, other="x"))[0] for _ in range(2)] == [429] * 2
    assert [(await revoke(auth, token=token))[0] for token in ours] == [200, 200, 200, 429, 429]


async def test_revoking_again_and_again_only_reads(start_auth: StartAuth, postgres_url: str) -> None:
    auth = await start_auth(revoke_limit_per_source=0)
    _, answer = await auth.exchange(auth.fxa_token())
    assert (await revoke(auth, token=answer["access_token"]))[0] == 200
    with closing(psycopg2.connect(postgres_url)) as connection, connection.cursor() as cursor:
        cursor.execute("lock table revocations, redis_changes in exclusive mode")  # whoever would write, waits
        answers = await many(50, lambda _: revoke(auth, token=answer["access_token"]))
    assert [status for status, _ in answers] == [200] * 50
