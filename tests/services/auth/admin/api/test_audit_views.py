"""/audit: what was done, newest first, page by page, of one subject or of all."""

from __future__ import annotations

from urllib.parse import quote

from tests.services.auth.admin.api.test_views import ask, at
from tests.services.auth.admin.conftest import NAMED, UID, USER, VIEWER, Rows
from tests.services.auth.conftest import Auth


async def test_changes_are_listed_with_who_made_them(admin_auth: Auth, rows: Rows) -> None:
    other = f"{UID}:s2s"
    for user in (USER, other):
        rows.user(user)
    for key in (NAMED, NAMED, NAMED):
        await ask(admin_auth, "POST", at(USER, "/budget"), key, json={"service_type": "s2s"})
    await ask(admin_auth, "POST", at(other, "/block"), json={"reason": "a script"})
    found, path = [], "/audit?limit=3"
    for _ in range(2):
        status, body, _ = await ask(admin_auth, "GET", path, VIEWER)
        assert status == 200
        found += body["entries"]
        path = f"/audit?limit=3&cursor={body['next_cursor']}"
    assert body["next_cursor"] is None
    assert [(one["actor"], one["action"], one["subject"]) for one in found] == [
        ("admin", "user.block", other),
        *[("jane", "user.tier", USER)] * 3,
    ]
    assert (found[0]["new"], found[0]["source"]) == ({"blocked": True, "reason": "a script"}, "127.0.0.1")
    assert [one["id"] for one in found] == sorted((one["id"] for one in found), reverse=True)
    _, body, _ = await ask(admin_auth, "GET", f"/audit?subject={quote(USER)}", VIEWER)
    assert {one["subject"] for one in body["entries"]} == {USER}
    for nobody in ("nobody", "%00", USER[:-1]):
        assert (await ask(admin_auth, "GET", f"/audit?subject={nobody}"))[1] == {"entries": [], "next_cursor": None}
    assert (await ask(admin_auth, "GET", "/audit", None))[0] == 401
