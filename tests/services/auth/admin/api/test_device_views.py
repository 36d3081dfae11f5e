"""/device: the list, one device, and a revocation that reaches Redis."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from shared.state import layout
from shared.stores.redis import connect
from tests.services.auth.admin.api.test_views import ask
from tests.services.auth.admin.conftest import VIEWER, Rows
from tests.services.auth.conftest import Auth

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
    }  # fmt: skip


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "cursor=x", "limit=1&limit=2", "q=a&q=b"])
async def test_a_list_that_can_not_be_is_refused(admin_auth: Auth, query: str) -> None:
    for path in ("/device", "/audit"):
        if not (path == "/audit" and "q=" in query):
            assert (await ask(admin_auth, "GET", f"{path}?{query}"))[0] == 400


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
