"""/device: the list, one device, and a revocation that reaches Redis."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import quote, urlencode

from services.auth.devices.sources import EnrollingSources
from services.local.postgres import PostgresServer
from services.local.valkey import ValkeyServer
from shared.domain.service_types import ServiceTypes
from shared.state import decisions, layout
from shared.stores import migrate
from shared.stores.postgres import Database
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from tests.services.auth.admin.api.test_views import ask
from tests.services.auth.admin.conftest import ADMIN_SETTINGS, VIEWER, Rows
from tests.services.auth.conftest import Auth, StartAuth
from tests.support.exposition import metric
from tests.support.service_types import service_type
from tests.support.waiting import until

KEY_ID = "+/" + "A" * 41 + "="


def at(key_id: str, rest: str = "") -> str:
    return f"/device/{quote(key_id, safe='')}{rest}"


async def test_devices_are_listed_and_searched_page_by_page(admin_auth: Auth, rows: Rows) -> None:
    ids = sorted(f"{number:02}{'A' * 41}=" for number in range(12))
    for key_id in ids:
        rows.device(key_id)
    found, path = [], "/device?limit=5"
    while True:
        status, body, _ = await ask(admin_auth, "GET", path, VIEWER)
        assert status == 200
        found += [device["key_id"] for device in body["devices"]]
        if body["next_cursor"] is None:
            break
        path = f"/device?limit=5&cursor={body['next_cursor']}"
    assert found == ids
    _, body, _ = await ask(admin_auth, "GET", "/device?q=1")
    assert [device["key_id"] for device in body["devices"]] == ids[-2:]
    assert body["devices"][0].keys() == {
        "key_id", "environment", "bundle_id", "bundle_version", "counter",
        "created_at", "last_used_at", "revoked_at", "revoked_reason",
        "validation_category", "risk_metric", "risk_metric_at", "receipt_fault", "source_digest",
    }  # fmt: skip


async def test_a_list_that_can_not_be_is_refused(admin_auth: Auth) -> None:
    for query in ["limit=0", "limit=201", "limit=x", "cursor=x", "limit=1&limit=2", "q=a&q=b"]:
        for path in ("/device", "/audit"):
            if not (path == "/audit" and "q=" in query):
                assert (await ask(admin_auth, "GET", f"{path}?{query}"))[0] == 400, query


async def test_a_revoked_device_is_refused_in_redis_and_on_record(admin_auth: Auth, rows: Rows, redis_url: str) -> None:
    rows.device(KEY_ID)
    status, body, _ = await ask(admin_auth, "GET", at(KEY_ID))
    assert (status, body["key_id"], body["revoked_at"]) == (200, KEY_ID, None)
    status, body, _ = await ask(admin_auth, "POST", at(KEY_ID, "/revoke"), json={"reason": "stolen"})
    assert (status, body["revoked_reason"]) == (200, "stolen")
    assert body["revoked_at"].endswith("Z")
    redis = connect(redis_url)
    assert await redis.hget(layout.of_identity(KEY_ID).identity(KEY_ID), layout.STANDING) == b"revoked"
    await redis.aclose()
    status, body, _ = await ask(admin_auth, "GET", f"/audit?subject={quote(KEY_ID, safe='')}")
    (entry,) = body["entries"]
    assert (status, entry["action"], entry["actor"], entry["new"]) == (
        200, "device.revoke", "admin", {"revoked": True, "reason": "stolen"},
    )  # fmt: skip


async def test_a_viewer_revokes_nothing_and_nobody_revokes_what_is_not_there(admin_auth: Auth, rows: Rows) -> None:
    rows.device(KEY_ID)
    assert (await ask(admin_auth, "POST", at(KEY_ID, "/revoke"), VIEWER))[0] == 403
    assert (await ask(admin_auth, "POST", at(KEY_ID, "/revoke"), None))[0] == 401
    for wrong in ({"reason": 1}, ["x"], {"reason": "\0"}, {"reason": "x" * 501}):
        assert (await ask(admin_auth, "POST", at(KEY_ID, "/revoke"), json=wrong))[0] == 400
    for path in (at("nobody"), at("nul\0")):
        assert (await ask(admin_auth, "GET", path))[0] == 404
        assert (await ask(admin_auth, "POST", f"{path}/revoke"))[0] == 404
    assert rows.run("select count(*) from devices where revoked_at is not null") == [(0,)]


def farm(rows: Rows) -> list[str]:
    """Devices that differ in app, version, category, age and source."""
    found = []
    for number in range(8):
        key_id = f"{number}{'A' * 42}="
        rows.run(
            "insert into devices (key_id, public_key, bundle_id, bundle_version, validation_category, source_digest, "
            "created_at) values (%s, '\\x04', %s, %s, %s, %s, timestamptz '2026-01-01' + %s * interval '1 day')",
            key_id,
            "org.example.a" if number < 4 else "org.example.b",
            str(number % 2),
            number % 4 or None,
            "even" if number % 2 == 0 else "odd",
            number,
        )
        found.append(key_id)
    return found


CRITERIA = [
    ({"bundle_id": "org.example.a"}, {0, 1, 2, 3}),
    ({"bundle_version": "1"}, {1, 3, 5, 7}),
    ({"validation_category": 2}, {2, 6}),
    ({"first_seen_from": "2026-01-06T00:00:00Z"}, {5, 6, 7}),
    ({"first_seen_to": "2026-01-03T00:00:00+00:00"}, {0, 1}),
    ({"first_seen_to": "2026-01-03T23:00:00+23:00"}, {0, 1}),
    ({"source_digest": "even"}, {0, 2, 4, 6}),
    ({"source_digest": "odd", "bundle_id": "org.example.b", "first_seen_to": "2026-01-07T00:00:00Z"}, {5}),
    ({"bundle_id": "org.example"}, set()),
    ({"bundle_id": "' or '1' = '1"}, set()),
]


async def test_what_is_listed_is_what_is_blocked(admin_auth: Auth, rows: Rows) -> None:
    keys = farm(rows)
    for criteria, meant in CRITERIA:
        query = urlencode(criteria)
        _, body, _ = await ask(admin_auth, "GET", f"/device?limit=200&{query}")
        assert [device["key_id"] for device in body["devices"]] == [keys[number] for number in sorted(meant)], criteria
        status, body, _ = await ask(admin_auth, "POST", "/device/block", json=criteria)
        assert (status, body) == (200, {"dry_run": True, "matching": len(meant), "blocked": 0}), criteria
        assert rows.run("select count(*) from identities") == [(0,)], "a dry run changes nothing"
        assert rows.audit() == [], criteria
        status, body, _ = await ask(admin_auth, "POST", "/device/block", json={**criteria, "dry_run": False})
        assert (status, body) == (200, {"dry_run": False, "matching": len(meant), "blocked": len(meant)}), criteria
        blocked = {row[0] for row in rows.run("select identity from identities where blocked_at is not null")}
        assert blocked == {keys[number] for number in meant}, criteria
        rows.run("truncate identities, audit_log")


async def test_blocked_devices_are_refused_in_redis_with_one_entry_on_record(
    admin_auth: Auth, rows: Rows, redis_url: str
) -> None:
    keys = farm(rows)
    rows.run("update devices set revoked_at = now() where key_id = %s", keys[0])
    asked = {"source_digest": "even", "dry_run": False, "reason": "a farm"}
    status, body, _ = await ask(admin_auth, "POST", "/device/block", json=asked)
    assert (status, body["matching"], body["blocked"]) == (200, 3, 3), "the revoked one needs no block"
    redis = connect(redis_url)
    for number in (2, 4, 6):

        async def standing(key_id: str = keys[number]) -> bool:
            found = await redis.hget(layout.of_identity(key_id).identity(key_id), layout.STANDING)
            return bool(found == b"blocked")

        await until(standing)
    ((actor, action, subject, old, new),) = rows.audit()
    assert (actor, action, subject, old) == ("admin", "device.block", "devices", None)
    assert new == {"meant": {"source_digest": "even"}, "matching": 3, "blocked": 3, "reason": "a farm"}
    _, body, _ = await ask(admin_auth, "POST", "/device/block", json=asked)
    assert (body["matching"], body["blocked"]) == (0, 0), "they are blocked already"

    for key_id in (keys[2], f"{keys[4]}:ai"):  # neither has a user: it was blocked before it came for a token
        path = f"/user/{quote(key_id, safe='')}/unblock"
        assert [(await ask(admin_auth, "POST", path))[0] for _ in range(2)] == [204, 404]
    assert (await ask(admin_auth, "POST", "/user/nul%00/unblock"))[0] == 404
    assert rows.run("select identity from identities where blocked_at is not null") == [(keys[6],)]
    assert await redis.hget(layout.of_identity(keys[2]).identity(keys[2]), layout.STANDING) == b"0"
    assert {entry[1:3] for entry in rows.audit()} > {("user.unblock", keys[2]), ("user.unblock", keys[4])}
    await redis.aclose()


async def test_a_block_that_does_not_say_whom_is_refused(admin_auth: Auth, rows: Rows) -> None:
    farm(rows)
    for asked in [
        {},
        {"dry_run": False},
        {"dry_run": False, "reason": "all"},
        {"bundle_id": ""},
        {"bundle_id": "a\0"},
        {"validation_category": -1},
        {"validation_category": "4"},
        {"validation_category": 2**32},
        {"first_seen_from": "yesterday"},
        {"first_seen_to": "2026-01-01T00:00:00"},
        {"bundle_id": "a", "dry_run": "false"},
        {"bundle": "a", "dry_run": False},
        {"bundle_id": "a", "budle_version": "1"},
        {"bundle_id": "a", "reason": "x" * 501},
        ["bundle_id"],
    ]:
        status, body, _ = await ask(admin_auth, "POST", "/device/block", json=asked)
        assert (status, body["error"]) == (400, "invalid_request"), asked
        assert rows.run("select count(*) from identities") == [(0,)], asked


async def test_a_viewer_blocks_nothing(admin_auth: Auth, rows: Rows) -> None:
    farm(rows)
    asked = {"source_digest": "even", "dry_run": False}
    assert (await ask(admin_auth, "POST", "/device/block", VIEWER, json=asked))[0] == 403
    assert (await ask(admin_auth, "POST", "/device/block", None, json=asked))[0] == 401
    assert rows.run("select count(*) from identities") == [(0,)]


async def test_without_postgresql_a_block_is_refused_whole_and_can_be_repeated(
    start_auth: StartAuth, own_postgres: PostgresServer
) -> None:
    url = own_postgres.create_database("mlpa")
    await asyncio.to_thread(migrate.upgrade, url)
    auth = await start_auth(**ADMIN_SETTINGS, database_url=url)
    rows = Rows(url)
    farm(rows)
    # The devices are blocked before the entry of the audit log is written
    rows.run("alter table audit_log rename to gone")
    asked = {"source_digest": "even", "dry_run": False}
    status, body, headers = await ask(auth, "POST", "/device/block", json=asked)
    assert (status, body["error"], "Retry-After" in headers) == (503, "temporarily_unavailable", True)
    assert rows.run("select (select count(*) from identities), (select count(*) from redis_changes)") == [(0, 0)]
    rows.run("alter table gone rename to audit_log")
    rows.close()
    own_postgres.kill()
    for dry_run in (True, False):
        status, body, headers = await ask(auth, "POST", "/device/block", json={**asked, "dry_run": dry_run})
        assert (status, body["error"], "Retry-After" in headers) == (503, "temporarily_unavailable", True)
    own_postgres.start()
    rows = Rows(url)
    assert rows.run("select count(*) from identities") == [(0,)]

    async def blocked() -> bool:
        status, body, _ = await ask(auth, "POST", "/device/block", json=asked)
        return bool(status == 200 and body == {"dry_run": False, "matching": 4, "blocked": 4})

    await until(blocked)
    assert len(rows.audit()) == 1
    rows.close()


async def test_without_redis_a_block_waits_whole_in_postgresql(
    start_auth: StartAuth, own_valkey: ValkeyServer, rows: Rows
) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, redis_url=own_valkey.url)
    keys = farm(rows)
    own_valkey.kill()
    asked = {"source_digest": "even", "dry_run": False}
    status, body, _ = await ask(auth, "POST", "/device/block", json=asked)
    assert (status, body) == (200, {"dry_run": False, "matching": 4, "blocked": 4})
    assert rows.run("select count(*) from redis_changes") == [(4,)]
    own_valkey.start()
    async with connect(own_valkey.url) as redis:
        for key_id in keys[::2]:

            async def refused(key_id: str = key_id) -> bool:
                return (await decisions.known(redis, key_id, "ai")).standing is layout.Standing.BLOCKED

            await until(refused)
        assert (await decisions.known(redis, keys[1], "ai")).standing is not layout.Standing.BLOCKED
    assert len(rows.audit()) == 1


async def test_a_malformed_criterion_is_refused(admin_auth: Auth) -> None:
    for query in [
        "validation_category=x",
        "first_seen_from=now",
        "first_seen_to=2026-01-01",
        "first_seen_to=0001-01-01T00:00:00%2B23:00",
        "bundle_id=%00",
        "bundle_id=a&bundle_id=b",
    ]:
        assert (await ask(admin_auth, "GET", f"/device?{query}"))[0] == 400, query


async def test_keys_of_one_source_have_one_digest_that_does_not_tell_the_address(admin_auth: Auth, rows: Rows) -> None:
    for _ in range(2):
        assert (await admin_auth.enrol(admin_auth.device()))[0] == 201
    _, body, _ = await ask(admin_auth, "GET", "/device")
    digests = {device["source_digest"] for device in body["devices"]}
    assert len(digests) == 1
    assert re.fullmatch(r"[0-9a-f]{32}", digests.pop())


async def test_the_sources_that_enrol_most_are_counted(admin_auth: Auth, rows: Rows) -> None:
    rows.run(
        "insert into devices (key_id, public_key, source_digest, created_at) "
        "select 'key' || n, '\\x04', case when n < 120 then 'farm' when n < 130 then 'office' else n::text end, "
        "now() - case when mod(n, 40) = 0 then interval '2 hours' else interval '1 minute' end "
        "from generate_series(1, 140) n"
    )
    registry = Registry()
    async with Database.connect(admin_auth.settings.database_url.get_secret_value()) as database:
        await EnrollingSources(database, ServiceTypes({}, {}), registry).read()
    shown = registry.render().decode()
    assert "enrolled_keys_of_busiest_source 117" in shown
    counts = [re.search(rf'enrolling_sources{{keys="{step}"}} (\d+)', shown) for step in (1, 10, 100, 1000)]
    assert [int(found[1]) for found in counts if found] == [13, 1, 1, 0]


async def test_receipts_that_nobody_renews_are_seen_where_a_row_asks_for_them(postgres_url: str, rows: Rows) -> None:
    rows.run(
        "insert into devices (key_id, public_key, receipt, receipt_due_at, revoked_at) "
        "select key_id, '', receipt, now() - hours * interval '1 hour', revoked from (values "
        "('due', bytea 'r', 2, null), ('due later', 'r', -5, null), ('none', null, 9, null), "
        "('revoked', 'r', 8, now()), ('never', 'r', null, null)) as one (key_id, receipt, hours, revoked)"
    )
    async with Database.connect(postgres_url) as database:
        for most, hours in ((0, 0), (5, 2)):
            registry = Registry()
            types = ServiceTypes({"s2s": service_type("s2s"), "ai": service_type(max_risk_metric=most)}, {})
            await EnrollingSources(database, types, registry).read()
            assert metric(registry, "receipts_oldest_due_seconds") // 3600 == hours
        rows.run("update devices set receipt_due_at = now() + interval '1 day'")
        await EnrollingSources(database, types, registry := Registry()).read()
        assert metric(registry, "receipts_oldest_due_seconds") == 0
