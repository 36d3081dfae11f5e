"""``mlpa device list`` and ``mlpa device block`` against auth."""

from __future__ import annotations

import json
from typing import Any

from tests.services.auth.admin.conftest import ADMIN, Rows, admin_auth, rows
from tests.services.auth.conftest import Auth, pki, start_auth
from tests.services.cli.test_shipped import invoke

__all__ = ["admin_auth", "pki", "rows", "start_auth"]


async def device(auth: Auth, *arguments: str) -> tuple[int, Any]:
    """Exit code and answer of a command."""
    done = await invoke("device", "--auth-url", auth.url, *arguments, MLPA_ADMIN_KEY=ADMIN)
    return done.exit_code, json.loads(done.stdout) if done.stdout else None


async def test_devices_of_a_source_are_found_counted_and_then_blocked(admin_auth: Auth, rows: Rows) -> None:
    for number in range(3):
        rows.device(f"{number}{'A' * 42}=")
    rows.run("update devices set source_digest = 'farm', created_at = '2026-03-01', validation_category = 0")
    rows.run("update devices set source_digest = 'home' where key_id like '2%%'")
    meant = ("--source-digest", "farm", "--first-seen-from", "2026-03-01", "--first-seen-to", "2026-03-02 12:00:00")
    code, listed = await device(admin_auth, "list", *meant, "--category", "0")
    assert (code, [one["key_id"][0] for one in listed["devices"]]) == (0, ["0", "1"])
    assert await device(admin_auth, "block", *meant) == (0, {"dry_run": True, "matching": 2, "blocked": 0})
    code, blocked = await device(admin_auth, "block", *meant, "--apply", "--reason", "a farm")
    assert (code, blocked) == (0, {"dry_run": False, "matching": 2, "blocked": 2})
    assert rows.run("select count(*) from identities where blocked_reason = 'a farm'") == [(2,)]
    assert len(rows.audit()) == 1
    assert await device(admin_auth, "block", "--apply") == (1, None), "nobody blocks all devices by mistake"
