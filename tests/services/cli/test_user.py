"""``mlpa user erase`` and ``mlpa user export`` against auth."""

from __future__ import annotations

import json

import pytest

from tests.services.auth.admin.conftest import ADMIN, UID, USER, VIEWER, Rows, admin_auth, rows
from tests.services.auth.conftest import Auth, pki, start_auth
from tests.services.cli.test_shipped import invoke

__all__ = ["admin_auth", "pki", "rows", "start_auth"]

KEY_ID = "+/" + "A" * 41 + "="
NOTHING = (1, "", "Error: 404 not_found: There is nothing about this identity.\n")


async def user(auth: Auth, *arguments: str, key: str = ADMIN) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    done = await invoke("user", "--auth-url", auth.url, *arguments, MLPA_ADMIN_KEY=key)
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("named", [UID, USER])
async def test_an_account_is_exported_and_erased_by_user_or_by_identity(
    admin_auth: Auth, rows: Rows, named: str
) -> None:
    assert await user(admin_auth, "export", named) == NOTHING
    assert (await admin_auth.exchange(admin_auth.fxa_token(UID)))[0] == 200
    for number in range(1001):  # of several pages
        rows.request(f"row{number:04d}")
    code, output, errors = await user(admin_auth, "export", named)
    exported = json.loads(output)
    assert (code, errors, exported["identity"]) == (0, "", UID)
    assert len(exported["postgresql"]["ledger"]) == 1001
    assert await user(admin_auth, "erase", named) == (0, "", "erased\n")
    assert rows.run("select count(*) from users") == [(0,)]
    assert rows.run("select count(*) from ledger where user_id like %s", f"{UID}%") == [(0,)]
    for command in ("erase", "export"):
        assert await user(admin_auth, command, named) == NOTHING


async def test_a_device_is_exported_and_erased_whose_id_a_path_has_to_encode(admin_auth: Auth, rows: Rows) -> None:
    rows.device(KEY_ID)
    code, output, _ = await user(admin_auth, "export", KEY_ID)
    assert (code, [row["key_id"] for row in json.loads(output)["postgresql"]["devices"]]) == (0, [KEY_ID])
    for command in ("erase", "export"):
        code, output, errors = await user(admin_auth, command, KEY_ID, key=VIEWER)
        assert (code, output, errors.startswith("Error: 403 ")) == (1, "", True)
    assert await user(admin_auth, "erase", KEY_ID) == (0, "", "erased\n")
    assert rows.run("select count(*) from devices") == [(0,)]
