"""Users as operators change them, and the figures that must stay exact while others come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from services.auth.audit.storage import Actor
from services.auth.standing.changes import Changes
from services.auth.users import operators_storage as storage
from services.auth.users.entry import Users
from services.auth.users.operators import UserAdmin
from services.auth.users.operators_storage import Which
from services.auth.users.spending import Spending
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.stores.postgres import Database, Query
from shared.stores.redis import Client, connect
from shared.telemetry.metrics import Registry
from tests.support.digests import DIGESTS
from tests.support.service_types import development

UID = "00112233445566778899aabbccddeeff"
USER = f"{UID}:ai"
JANE = Actor("jane", "10.0.0.1")


@dataclass
class Parts:
    database: Database
    redis: Client
    types: ServiceTypes
    users: Users
    changes: Changes
    admin: UserAdmin

    @property
    def ai(self) -> ServiceType:
        return self.types.by_name["ai"]

    async def one(self, sql: str) -> object:
        return next(iter((await self.database.fetch(Query.text(sql)))[0].values()))


@pytest.fixture
async def parts(postgres_url: str, redis_url: str) -> AsyncIterator[Parts]:
    registry, redis, types = Registry(), connect(redis_url), development()
    async with Database.connect(postgres_url, max_size=10, timeout=10) as database:
        changes = Changes(database, redis, registry)
        admin = UserAdmin(database, Spending(database, redis, types), changes, types)
        yield Parts(database, redis, types, Users(database, redis, registry, DIGESTS), changes, admin)
    await redis.aclose()


async def test_blocking_twice_keeps_the_first_time_and_takes_the_last_reason(parts: Parts) -> None:
    await parts.users.enter(UID, parts.ai)
    await parts.admin.block(USER, JANE, "first")
    first = (await parts.admin.get(USER)).row
    await parts.admin.block(USER, JANE, None)
    second = (await parts.admin.get(USER)).row
    assert (second.blocked_at, second.blocked_reason) == (first.blocked_at, None)


async def test_a_tier_that_is_no_more_is_the_users_own_service_type(parts: Parts) -> None:
    await parts.users.enter(UID, parts.ai)
    await parts.database.execute(Query.text("update users set budget_tier = 'gone'"))
    assert (await parts.admin.get(USER)).spent.max_budget_nano == parts.ai.max_budget_nano


async def test_a_change_and_its_audit_entry_are_one_transaction(parts: Parts) -> None:
    await parts.users.enter(UID, parts.ai)
    await parts.database.execute(Query.text("alter table audit_log add constraint full_up check (false) not valid"))
    with pytest.raises(Exception, match="full_up"):
        await parts.admin.block(USER, JANE)
    assert not (await parts.admin.get(USER)).row.blocked_at
    assert await parts.one("select count(*) from redis_changes") == 0


async def test_pages_and_searches_read_no_more_than_they_show(parts: Parts) -> None:
    """The plans, not the clock: every page is a range of an index."""
    await parts.database.execute(
        Query.text(
            "insert into users (user_id, identity, service_type, budget_tier, created_at, last_seen_at) "
            "select md5(n::text) || '\\:ai', md5(n::text), 'ai', (array['ai', 's2s', 'memories'])[1 + n % 3], "
            "now() - interval '1 min' * n, now() - interval '1 min' * (n % 9973) "
            "from generate_series(1, 20000) n"
        )
    )
    await parts.database.execute(Query.text("analyze users"))
    page, total = await parts.admin.page(limit=50)
    for _ in range(3):
        assert page.next_cursor
        page, total = await parts.admin.page(limit=50, cursor=page.next_cursor)
    assert total == pytest.approx(20_000, rel=0.1)
    for where in (
        "user_id > 'ab0' and user_id >= 'ab' and user_id < 'ab\U0010ffff' order by user_id",
        "(created_at, user_id) > (now(), '') order by created_at, user_id",
    ):
        plan = await parts.database.fetch(Query.text(f"explain select * from users where {where} limit 50"))
        text = "\n".join(str(row["QUERY PLAN"]) for row in plan)
        assert "Index" in text
        assert "Seq Scan" not in text
        assert "Sort" not in text


async def test_each_list_is_paged_in_both_directions_by_an_index(parts: Parts) -> None:
    """Every third identity is blocked, revoked, excepted or of another tier; 20,000 others are not read."""
    run = parts.database.execute
    for shape in ("md5(n::text)", "encode(sha256(n::text::bytea), 'base64')"):
        await run(
            Query.text(
                "insert into users (user_id, identity, service_type, budget_tier) "
                f"select {shape} || '\\:' || kind, {shape}, kind, case when n <= 60 then 's2s' else kind end "
                "from generate_series(1, 10000) n, unnest(array['ai', 'memories']) kind"
            )
        )
    await run(
        Query.text(
            "insert into identities (identity, blocked_at) select md5(n::text), case when n <= 30 then now() end "
            "from generate_series(1, 10000) n"
        )
    )
    await run(
        Query.text(
            "insert into devices (key_id, public_key, revoked_at) select encode(sha256(n::text::bytea), 'base64'), "
            "'x', case when n <= 30 then now() end from generate_series(1, 10000) n"
        )
    )
    await run(
        Query.text(
            "insert into exceptions select user_id, 1, false, now() + interval '1 day', null from users "
            "where budget_tier = 's2s'"
        )
    )
    await run(
        Query.text(
            "insert into users (user_id, identity, service_type, budget_tier) "
            "select gen_random_uuid() || '\\:ai', 'x', 'ai', 'ai' from generate_series(1, 60)"
        )
    )
    await run(Query.text("analyze"))
    counts: dict[Which, int] = {"tier": 240, "blocked": 60, "revoked": 60, "exception": 240, "installs": 60}
    for which, number in counts.items():
        page, _ = await parts.admin.page(limit=25, which=which, tier="s2s")
        seen, pages = page.rows, [page]
        while page.next_cursor:
            page, _ = await parts.admin.page(limit=25, which=which, tier="s2s", cursor=page.next_cursor)
            seen, pages = [*seen, *page.rows], [*pages, page]
        ids = [user.row.user_id for user in seen]
        assert (len(ids), ids) == (number, sorted(set(ids))), which
        back, _ = await parts.admin.page(limit=25, which=which, tier="s2s", cursor=pages[-1].previous_cursor)
        assert back.rows == pages[-2].rows, which
    for (which, _), query in storage._PAGES.items():
        given = dict.fromkeys(("id", "q", "identity"), "") | {
            "end": storage.LAST,
            "tier": "s2s",
            "at": "now",
            "limit": 25,
        }
        explain = Query.text("explain " + query.sql.replace("%(", ":").replace(")s", "").replace("::", "\\:\\:"))
        plan = "\n".join(str(row["QUERY PLAN"]) for row in await parts.database.fetch(explain, **given))
        assert "Seq Scan on users" not in plan, (which, plan)
