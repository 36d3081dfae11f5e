"""The console while PostgreSQL or Redis is down, and after their return."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from services.local.postgres import PostgresServer
from services.local.valkey import ValkeyServer
from shared.state.decisions import known
from shared.state.layout import Standing, identity_key
from shared.stores import migrate
from shared.stores.redis import connect
from tests.services.auth.admin.api.test_views import ask, at
from tests.services.auth.admin.conftest import ADMIN_SETTINGS, UID, USER, People, Person, Rows, bearer
from tests.services.auth.conftest import StartAuth
from tests.support.waiting import until

HERE = f"/admin/users/{quote(USER, safe='')}"


async def test_without_redis_a_change_is_a_503_and_applied_when_it_is_back(
    start_auth: StartAuth, own_valkey: ValkeyServer, rows: Rows
) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, redis_url=own_valkey.url)
    rows.user()
    own_valkey.kill()
    status, body, headers = await ask(auth, "POST", at(USER, "/block"))
    assert (status, body["error"]) == (503, "temporarily_unavailable")
    assert headers["Retry-After"]
    status, body, _ = await ask(auth, "GET", at(USER))
    assert (status, body["blocked"]) == (200, True)
    own_valkey.start()
    redis = connect(own_valkey.url)

    async def blocked() -> bool:
        return (await known(redis, UID, "ai")).standing is Standing.BLOCKED

    await until(blocked)
    assert (await ask(auth, "POST", at(USER, "/block")))[0] == 200
    await redis.aclose()


async def test_without_redis_the_console_says_that_it_has_no_sessions(
    start_auth: StartAuth, own_valkey: ValkeyServer, people: People
) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, redis_url=own_valkey.url)
    person = await people.signed_in(auth)
    own_valkey.kill()
    page = await person.get("/admin")
    assert page.status == 503
    assert "Redis does not answer." in page.words
    assert (await person.get("/admin/sign-in")).status == 200
    page = await person.sign_in()
    assert (page.status, "is recorded" in page.words) == (503, False)


async def test_without_redis_the_console_changes_nothing_and_says_so(
    start_auth: StartAuth, own_valkey: ValkeyServer, people: People, rows: Rows
) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, redis_url=own_valkey.url)
    rows.user()
    person = await people.signed_in(auth)
    form = await person.get(f"{HERE}/block")
    own_valkey.kill()
    page = await person.submit(form, f"{HERE}/block")
    assert page.status == 503
    assert "Redis does not answer. Nothing is known to have changed" in page.words
    assert "is recorded" not in page.words
    assert rows.run("select (select count(*) from identities), (select count(*) from redis_changes)") == [(0, 0)]
    assert [entry[1] for entry in rows.audit()] == ["sign_in"]


async def test_a_change_that_only_postgresql_took_is_told_as_such(person: Person, rows: Rows, redis_url: str) -> None:
    rows.user()
    form = await person.get(f"{HERE}/block")
    async with connect(redis_url) as redis:
        await redis.set(identity_key(UID), "not a hash")
        page = await person.submit(form, f"{HERE}/block")
        assert page.status == 503
        assert "The change is recorded" in page.words
        assert rows.run("select count(*) from identities where blocked_at is not null") == [(1,)]
        await redis.delete(identity_key(UID))


async def test_a_change_has_happened_also_when_redis_cannot_keep_what_to_say_of_it(
    start_auth: StartAuth, own_valkey: ValkeyServer, people: People, rows: Rows
) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, redis_url=own_valkey.url)
    rows.user()
    person = await people.signed_in(auth)
    form = await person.get(f"{HERE}/block")
    with own_valkey.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "default", "resetkeys", "~mlpa:{*", "~mlpa:rl:*"),
            "(+hgetall +expire +hdel ~mlpa:session:*)",
        )
    page = await person.submit(form, f"{HERE}/block")
    assert (page.status, page.url) == (200, HERE)
    assert "Blocked, in all" not in page.words
    assert "user_blocked" in page.words


async def test_without_postgres_the_overview_still_tells_what_is_wrong(
    start_auth: StartAuth, own_postgres: PostgresServer, people: People
) -> None:
    url = own_postgres.create_database("mlpa")
    await asyncio.to_thread(migrate.upgrade, url)
    auth = await start_auth(**ADMIN_SETTINGS, database_url=url)
    person = await people.signed_in(auth)
    own_postgres.kill()

    async def told() -> bool:  # the checks are kept for a second
        page = await person.get("/admin")
        return page.status == 200 and "Auth degraded" in page.words

    await until(told)
    page = await person.get("/admin")
    assert "Spend and requests can't be shown" in page.words
    page = await person.get("/admin/users")
    assert (page.status, "PostgreSQL does not answer." in page.words) == (503, True)
    page = await person.get("/admin/service-types")
    assert (page.status, "The numbers of users can't be shown" in page.words) == (200, True)
    status, _, headers = await auth.ask("GET", "/user", headers=bearer())
    assert (status, "Retry-After" in headers) == (503, True)
