"""FxA's events: what they change, that they change it once, and what is answered when they can't be taken."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

import pytest

from services.auth.events import storage
from services.gateway.errors import InvalidToken
from services.gateway.tokens.models import Principal
from services.local.faults import Fault
from services.local.fxa import EventOrder, StandIn
from services.local.fxa_keys import KeyRing, SigningKey
from services.local.postgres import PostgresServer
from services.local.valkey import ValkeyServer
from shared.domain import tokens
from shared.domain.identity import split_user
from shared.errors import ServiceError
from shared.stores import migrate
from shared.stores.postgres import Database, Query
from shared.stores.redis import Client
from tests.services.auth.conftest import UID, Auth, StartAuth, many
from tests.services.gateway.budget.support import opened, row, rows
from tests.support.exposition import metric
from tests.support.waiting import until

CLIENT = "5882386c6d801776"
PASSWORD = "https://schemas.accounts.firefox.com/event/password-change"
_HELD = Query.text(
    "select (select max(tokens_from_ms) from identities) as from_ms, (select count(*) from fxa_deliveries) as taken, "
    "(select count(*) from redis_changes) as waiting"
)
_OLD = Query.text("insert into fxa_deliveries values ('old', now() - interval '2 minutes'), ('new', now())")


@pytest.fixture
async def auth(start_auth: StartAuth) -> Auth:
    return await start(start_auth)


async def start(start_auth: StartAuth, **settings: Any) -> Auth:
    auth = await start_auth(**{"fxa_client_ids": CLIENT, **settings})
    auth.fxa.events_url = f"{auth.url}/fxa/events"
    return auth


async def deliver(auth: Auth, token: str | None) -> tuple[int, Any, Any]:
    return await auth.ask("POST", "/fxa/events", headers={"Authorization": f"Bearer {token}"} if token else {})


def password_changed(auth: Auth, ms: int, uid: str = UID, **claims: Any) -> str:
    return auth.fxa.security_event(EventOrder(uid), events={PASSWORD: {"changeTime": ms}}, **claims)


def jwt(auth: Auth, issued_at: int, uid: str = UID) -> str:
    """A token without a generation."""
    order = {"sub": uid, "client_id": CLIENT, "scope": "profile:uid", "iss": "http://fxa.test"}
    return auth.fxa.sign({**order, "iat": issued_at, "exp": issued_at + 3600})


def bearer(access_token: str) -> Principal:
    claims = tokens.claims_of(access_token)
    identity, service_type = split_user(claims.sub)
    return Principal(claims.sub, identity, row(service_type), claims.jti, float(claims.exp), None, claims.iat)


async def held(database: Database) -> tuple[Any, int, int]:
    found = (await database.fetch(_HELD))[0]
    return found["from_ms"], found["taken"], found["waiting"]


async def test_a_changed_password_ends_every_token_of_before_in_all_gateways_and_service_types(
    auth: Auth, redis: Client, redis_url: str, postgres_url: str
) -> None:
    opaque = auth.fxa_token(kind="opaque")
    ours = [bearer((await auth.exchange(opaque, scope=scope))[1]["access_token"]) for scope in ("ai", "s2s")]
    others = bearer((await auth.exchange(auth.fxa_token(uid="f" * 32)))[1]["access_token"])
    cut = ours[1].issued_at + 1
    kinds = rows(row("ai"), row("s2s"))
    async with (
        opened(redis_url, postgres_url, kinds) as (one, _, _),
        opened(redis_url, postgres_url, kinds) as (other, _, _),
    ):
        for budgets in (one, other):
            for principal in (*ours, others):
                await budgets.check(principal)
        assert (await deliver(auth, password_changed(auth, cut * 1000 + 999)))[0] == 200
        answered = time.monotonic()
        assert await redis.keys("mlpa:fxa:v1:*") != [], "the other account's verification is remembered"
        for emptied in (False, True):
            if emptied:
                await redis.flushall()
            for budgets in (one, other):
                for principal in ours:
                    with pytest.raises(InvalidToken):
                        await budgets.check(principal)
                    await budgets.check(dataclasses.replace(principal, jti="later", issued_at=cut))
                await budgets.check(others)
            for issued_at, status in ((cut - 1, 400), (cut, 200)):
                assert (await auth.exchange(jwt(auth, issued_at)))[0] == status
            assert emptied or time.monotonic() - answered < 10
        assert metric(auth.registry, "fxa_events_total", type="password-change") == 1


async def test_remembered_verifications_of_an_account_are_dropped(auth: Auth) -> None:
    token = auth.fxa_token(kind="opaque")
    assert (await auth.exchange(token))[0] == 200
    assert await auth.fxa.happen(EventOrder(UID)) == 200  # FxA has destroyed the token by then
    asked = auth.fxa.faults.calls["verify"]
    assert (await auth.exchange(token))[0] == 400
    assert auth.fxa.faults.calls["verify"] == asked + 1


async def test_a_token_that_was_sent_before_changes_nothing(auth: Auth, database: Database, redis: Client) -> None:
    now = int(time.time())
    first, later = password_changed(auth, now * 1000), password_changed(auth, now * 1000 + 5)
    assert (await deliver(auth, first))[0] == 200
    assert (await deliver(auth, later))[0] == 200
    await redis.flushall()
    assert (await auth.exchange(auth.fxa_token(kind="opaque", uid=UID)))[0] in (200, 400)
    before = await held(database)
    assert before == (now * 1000 + 5, 2, 0)
    for token in (first, later):
        assert (await deliver(auth, token))[0] == 200
    same = auth.fxa.security_event(EventOrder("f" * 32), jti=jti_of(first))
    assert (await deliver(auth, same))[0] == 200
    assert await held(database) == before
    assert metric(auth.registry, "fxa_events_total", type="password-change") == 2


def jti_of(token: str) -> str:
    return str(tokens.decode_segment(token.split(".")[1], dict)["jti"])


async def test_an_older_change_changes_nothing(auth: Auth, database: Database) -> None:
    now = int(time.time())
    for ms, known in ((now * 1000, now * 1000), (now * 1000 - 5000, now * 1000), (now * 1000 + 7, now * 1000 + 7)):
        assert (await deliver(auth, password_changed(auth, ms)))[0] == 200
        assert (await held(database))[0] == known
    assert (await auth.exchange(jwt(auth, now - 1)))[0] == 400


async def test_of_many_deliveries_at_once_each_counts_once_and_the_latest_change_holds(
    auth: Auth, database: Database
) -> None:
    now = int(time.time() * 1000)
    same, changes = password_changed(auth, now), [password_changed(auth, now - 1000 * late) for late in range(5)]
    answers = await many(20, lambda index: deliver(auth, same if index % 2 else changes[index // 2 % 5]))
    assert {status for status, _, _ in answers} <= {200, 503}, "a decision that another came before is sent again"
    for token in (same, *changes):
        assert (await deliver(auth, token))[0] == 200
    assert await held(database) == (now, 6, 0)
    assert metric(auth.registry, "fxa_events_total", type="password-change") == 6


async def test_a_deleted_account_is_erased_and_its_tokens_are_good_for_nothing(
    auth: Auth, redis: Client, database: Database, redis_url: str, postgres_url: str
) -> None:
    fxa_token = jwt(auth, int(time.time()))
    ours = [bearer((await auth.exchange(fxa_token, scope=scope))[1]["access_token"]) for scope in ("ai", "s2s")]
    kinds = rows(row("ai"), row("s2s"))
    async with (
        opened(redis_url, postgres_url, kinds) as (one, _, _),
        opened(redis_url, postgres_url, kinds) as (other, _, _),
    ):
        for principal in ours:
            await one.check(principal)
        token = auth.fxa.security_event(EventOrder(UID, "delete-user"))
        assert (await deliver(auth, token))[0] == 200
        for emptied in (False, True):
            if emptied:
                await redis.flushall()
            for principal in ours:
                for budgets in (one, other):
                    with pytest.raises(ServiceError) as refused:
                        await budgets.check(principal)
                    assert 400 <= refused.value.status < 500
            assert (await auth.exchange(fxa_token))[0] in (400, 403)
        erased = await database.fetch(Query.text("select count(*) as erased from erasures where sealed is not null"))
        assert erased[0]["erased"] == 1
        assert (await database.fetch(Query.text("select identity from users"))) == []
        assert (await deliver(auth, token))[0] == 200
        assert metric(auth.registry, "fxa_events_total", type="delete-user") == 1


async def test_of_an_account_that_was_never_here_only_the_digest_is_kept(auth: Auth, database: Database) -> None:
    assert await auth.fxa.happen(EventOrder(UID, "delete-user")) == 200
    kept = await database.fetch(Query.text("select identity from identities"))
    assert [one["identity"][:7] for one in kept] == ["erased."]
    assert (await auth.exchange(jwt(auth, int(time.time()) - 60)))[0] == 400
    assert (await database.fetch(Query.text("select identity from users"))) == []


async def test_an_event_that_comes_after_the_deletion_brings_no_uid_back(
    auth: Auth, database: Database, redis: Client
) -> None:
    assert (await auth.exchange(auth.fxa_token()))[0] == 200
    assert await auth.fxa.happen(EventOrder(UID, "delete-user")) == 200
    ahead = int(time.time() * 1000) + 20_000
    late = password_changed(auth, ahead), auth.fxa.security_event(EventOrder(UID, "delete-user"))
    for token in late:
        assert (await deliver(auth, token))[0] == 200
        kept = await database.fetch(Query.text("select identity, tokens_from_ms from identities"))
        assert [(one["identity"][:7], one["tokens_from_ms"]) for one in kept] == [("erased.", ahead)]
        assert (await held(database))[2] == 0
        assert [key for key in await redis.keys() if UID.encode() in key] == []
    assert (await auth.exchange(jwt(auth, int(time.time()) + 2)))[0] == 400, "a change that came late holds as well"


async def test_a_token_that_is_revoked_after_the_deletion_brings_no_uid_back(
    auth: Auth, database: Database, redis: Client
) -> None:
    """As a client does that signs out because its account is gone."""
    token = (await auth.exchange(auth.fxa_token()))[1]["access_token"]
    assert await auth.fxa.happen(EventOrder(UID, "delete-user")) == 200
    assert (await auth.ask("POST", "/revoke", data={"token": token}))[0] == 200
    revoked = await database.fetch(Query.text("select user_id from revocations"))
    assert [one["user_id"][:11] + one["user_id"][-3:] for one in revoked] == ["erased.fxa.:ai"]
    assert (await held(database))[2] == 0
    assert [key for key in await redis.keys() if UID.encode() in key] == []


async def test_verifications_are_dropped_also_when_another_process_has_applied_the_change(
    start_auth: StartAuth, database: Database, redis: Client
) -> None:
    auth = await start(start_auth)
    token = password_changed(auth, int(time.time()) * 1000)
    assert (await deliver(auth, token))[0] == 200
    assert (await auth.exchange(auth.fxa_token(kind="opaque")))[0] == 200
    await redis.delete(*await redis.keys("mlpa:fxa:purged:*"))
    assert (await auth.exchange(auth.fxa_token(kind="opaque")))[0] == 200
    assert await redis.keys("mlpa:fxa:v1:*") != []
    assert (await held(database))[2] == 0, "nothing waits"
    assert (await deliver(auth, token))[0] == 200
    assert await redis.keys("mlpa:fxa:v1:*") == []


async def test_a_deletion_that_redis_lacks_is_sent_again(start_auth: StartAuth, own_valkey: ValkeyServer) -> None:
    auth = await start(start_auth, redis_url=own_valkey.url)
    own_valkey.kill()
    assert await auth.fxa.happen(EventOrder(UID, "delete-user")) == 503
    assert metric(auth.registry, "fxa_events_total", type="delete-user") == 0
    own_valkey.start()
    await until(lambda: auth.fxa.deliveries[-1] == 200)
    assert metric(auth.registry, "fxa_events_total", type="delete-user") == 1


async def test_other_events_are_counted_and_change_nothing(auth: Auth, database: Database) -> None:
    for event in ("profile-change", "subscription-state-change"):
        assert await auth.fxa.happen(EventOrder(UID, event)) == 200  # type: ignore[arg-type]
        assert metric(auth.registry, "fxa_events_total", type=event) == 1
    assert (await deliver(auth, auth.fxa.security_event(EventOrder(UID), events={"https://x.test/new": {}})))[0] == 200
    assert metric(auth.registry, "fxa_events_total", type="other") == 1
    assert await held(database) == (None, 3, 0)


async def test_without_redis_an_event_is_sent_again_until_redis_has_it(
    start_auth: StartAuth, own_valkey: ValkeyServer, database: Database
) -> None:
    auth = await start(start_auth, redis_url=own_valkey.url)
    own_valkey.kill()
    assert await auth.fxa.happen(EventOrder(UID)) == 503
    token = password_changed(auth, int(time.time() * 1000) + 2)
    for _ in range(2):
        assert (await deliver(auth, token))[0] == 503
    assert (await held(database))[0] is not None
    assert metric(auth.registry, "fxa_event_failures_total", dependency="redis") >= 2
    own_valkey.start()
    await until(lambda: auth.fxa.deliveries[-1] == 200)
    assert (await deliver(auth, token))[0] == 200
    assert (await held(database))[2] == 0
    assert (await auth.exchange(jwt(auth, int(time.time()) - 60)))[0] == 400


async def test_without_postgresql_nothing_is_taken_and_the_event_is_sent_again(
    start_auth: StartAuth, redis: Client, own_postgres: PostgresServer
) -> None:
    url = own_postgres.create_database("mlpa")
    migrate.upgrade(url)
    auth = await start(start_auth, database_url=url)
    old = jwt(auth, int(time.time()) - 60)
    assert (await auth.exchange(old))[0] == 200
    own_postgres.kill()
    assert await auth.fxa.happen(EventOrder(UID)) == 503
    assert (await auth.exchange(old))[0] == 200, "nothing is half done"
    assert metric(auth.registry, "fxa_event_failures_total", dependency="postgres") >= 1
    assert metric(auth.registry, "fxa_events_total") == 0
    own_postgres.start()
    await until(lambda: auth.fxa.deliveries[-1] == 200)
    assert (await auth.exchange(old))[0] == 400
    async with Database.connect(url) as database:
        assert (await held(database))[1] == 1


async def test_a_key_that_fxa_has_just_begun_to_use_is_looked_for(auth: Auth) -> None:
    assert await auth.fxa.happen(EventOrder(UID)) == 200
    auth.fxa.ring.rotate()
    auth.fxa.ring.rotate()
    assert await auth.fxa.happen(EventOrder(UID)) == 200


async def test_without_fxas_keys_an_event_is_sent_again(auth: Auth) -> None:
    assert await auth.fxa.happen(EventOrder(UID)) == 200
    auth.fxa.ring.rotate()
    auth.fxa.ring.rotate()
    auth.fxa.faults.set(Fault("jwks", "respond", status=503))
    status, body, headers = await deliver(auth, auth.fxa.security_event(EventOrder(UID)))
    assert (status, body["error"]) == (503, "temporarily_unavailable") and headers["Retry-After"]
    assert metric(auth.registry, "fxa_event_failures_total", dependency="fxa") == 1


async def test_each_refusal_is_counted_by_its_reason_and_tells_nothing(
    auth: Auth, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    now = int(time.time() * 1000)
    stranger = StandIn("http://fxa.test", KeyRing([SigningKey.generate()] * 3))
    sent = {
        "missing": (None, 401, "invalid_token"),
        "form": ("abc", 401, "invalid_token"),
        "length": ("a" * 16_385, 401, "invalid_token"),
        "header": (auth.fxa.sign_event({}, {"alg": "RS512"}), 401, "invalid_token"),
        "type": (auth.fxa_token(), 401, "invalid_token"),
        "extension": (auth.fxa.sign_event({}, {"crit": []}), 401, "invalid_token"),
        "key": (stranger.security_event(EventOrder(UID)), 401, "invalid_token"),
        "signature": (f"{auth.fxa.security_event(EventOrder(UID))[:-8]}AAAAAAAA", 401, "invalid_token"),
        "issuer": (password_changed(auth, now, iss="http://fxa.test.evil"), 401, "invalid_token"),
        "audience": (password_changed(auth, now, aud="0" * 16), 401, "invalid_token"),
        "age": (password_changed(auth, now, iat=now / 1000 - 700), 401, "invalid_token"),
        "claims": (password_changed(auth, now, sub="somebody"), 400, "invalid_request"),
        "events": (
            password_changed(auth, now) and auth.fxa.sign_event({**_claims(), "events": {}}),
            400,
            "invalid_request",
        ),
        "change_time": (password_changed(auth, now + 60_000), 400, "invalid_request"),
    }
    for reason, (token, status, error) in sent.items():
        answered, body, headers = await deliver(auth, token)
        assert (answered, body["error"]) == (status, error), reason
        assert ("WWW-Authenticate" in headers) == (status == 401)
        assert metric(auth.registry, "fxa_event_refusals_total", reason=reason) == 1, reason
        assert not token or (token not in caplog.text and token.split(".")[-1] not in caplog.text)
    assert metric(auth.registry, "fxa_event_refusals_total") == len(sent)
    assert UID not in caplog.text
    assert await held(database) == (None, 0, 0)


def _claims() -> dict[str, Any]:
    return {"iss": "http://fxa.test/", "aud": CLIENT, "sub": UID, "iat": time.time(), "jti": "one"}


async def test_refused_deliveries_of_a_source_have_a_limit_that_good_ones_do_not_meet(start_auth: StartAuth) -> None:
    auth = await start(start_auth, fxa_events_limit_per_source=3)
    statuses = [(await deliver(auth, "junk"))[0] for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert await auth.fxa.happen(EventOrder(UID)) == 200


async def test_without_client_ids_no_event_is_for_us(start_auth: StartAuth) -> None:
    auth = await start(start_auth, fxa_client_ids="")
    assert (await deliver(auth, auth.fxa.security_event(EventOrder(UID))))[0] == 401


async def test_deliveries_are_forgotten_when_they_are_too_old_to_be_taken_again(database: Database) -> None:
    await database.execute(_OLD)
    await storage.clear_expired(database)
    assert await database.fetch(Query.text("select jti from fxa_deliveries")) == [{"jti": "new"}]
