"""The commands of support against a running system, and an exception as the gateways apply it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from click.testing import CliRunner

from services.cli.commands import cli
from tests.system.clients import Caller
from tests.system.harness import SECRETS, System


async def user(system: System, *arguments: str, key: str = SECRETS["MLPA_ADMIN_KEY"]) -> tuple[int, Any]:
    """Exit code, and the user that is printed or the error."""
    return await printed("user", "--auth-url", system.auth_url, *arguments, key=key)


async def printed(*arguments: str, key: str = SECRETS["MLPA_ADMIN_KEY"]) -> tuple[int, Any]:
    done = await asyncio.to_thread(CliRunner(env={"MLPA_ADMIN_KEY": key}).invoke, cli, arguments)
    return done.exit_code, json.loads(done.stdout) if done.exit_code == 0 else done.stderr


async def test_support_blocks_admits_and_gives_another_tier(system: System, caller: Caller) -> None:
    who, token = await caller.account()
    assert (await user(system, "show", who))[1]["user_id"] == who
    assert (await user(system, "block", who, "--reason", "a test"))[1]["blocked"]
    assert (await caller.chat(token)).status == 403
    assert not (await user(system, "unblock", who))[1]["blocked"]
    assert (await caller.chat(token)).status == 200
    assert (await user(system, "tier", who, "s2s"))[1]["budget_tier"] == "s2s"
    status, said = await user(system, "show", "nobody:ai")
    assert (status, "404 not_found" in said) == (1, True)
    status, said = await user(system, "show", who, key="wrong")
    assert (status, "401 unauthorized" in said) == (1, True)


async def test_an_exception_holds_at_the_gateway_and_is_on_record(system: System, caller: Caller) -> None:
    who, token = await caller.account()
    assert (await caller.budget(token)).json()["max_budget_usd"] == 1000
    status, shown = await user(system, "exception", who, "--usd", "1.5", "--hours", "1", "--reason", "a fair")
    assert status == 0
    assert (shown["exception"]["extra_budget_usd"], shown["exception"]["reason"]) == (1.5, "a fair")
    assert shown["max_budget_usd"] == (await caller.budget(token)).json()["max_budget_usd"] == 1001.5
    rows = system.sql("select action, new->>'extra_budget_usd' from audit_log where subject = %(who)s", who=who)
    assert rows == [("user.exception", "1.5")]
    for wrong in (("--usd", "-1"), ("--usd", "1000000"), ("--usd", "0"), ("--usd", "0.0000000001")):
        status, said = await user(system, "exception", who, *wrong, "--hours", "1")
        assert (status, "400 invalid_request" in said) == (1, True), wrong
    assert (await user(system, "exception", who, "--usd", "1", "--hours", "1000"))[0] == 1
    assert "exception" not in (await user(system, "exception", who, "--end"))[1]
    assert (await caller.budget(token)).json()["max_budget_usd"] == 1000


async def test_support_lists_and_revokes_devices_and_reads_what_was_done(system: System, caller: Caller) -> None:
    made = caller.device()
    await caller.enrol(made)
    token = (await caller.exchange_device(made)).json()["access_token"]
    key_id = made.key_id_b64
    device = ("device", "--auth-url", system.auth_url)
    status, shown = await printed(*device, "list", key_id[:20])
    assert (status, [one["key_id"] for one in shown["devices"]]) == (0, [key_id])
    assert len((await printed(*device, "list", "--limit", "1"))[1]["devices"]) == 1
    status, shown = await printed(*device, "revoke", key_id, "--reason", "stolen")
    assert (status, shown["revoked_reason"]) == (0, "stolen")
    assert (await caller.chat(token)).status == 403
    status, said = await printed(*device, "revoke", "nobody")
    assert (status, "404 not_found" in said) == (1, True)
    log = ("audit", "--auth-url", system.auth_url)
    status, shown = await printed(*log, key_id)
    assert (status, [one["action"] for one in shown["entries"]]) == (0, ["device.revoke"])
    status, said = await printed(*log, "--cursor", "x")
    assert (status, "400 invalid_request" in said) == (1, True)
    status, said = await printed(*log, key="")
    assert (status, "MLPA_ADMIN_KEY is not set" in said) == (2, True)
