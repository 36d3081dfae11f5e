"""Both services under real traffic, with the rights of ``deploy/roles.sql`` and ``deploy/redis.acl`` and no others."""

from __future__ import annotations

import psycopg2
import pytest

from tests.deploy.test_roles import url
from tests.support.waiting import until
from tests.system.clients import Caller
from tests.system.credentials import sign_in
from tests.system.harness import DATABASE, System


async def test_clients_and_operators_miss_nothing(system: System, caller: Caller) -> None:
    device = await caller.enrolled()
    exchanged = await caller.exchange_device(device)
    assert exchanged.status == 200, exchanged
    user, token = await caller.account()
    for each in (token, str(exchanged.json()["access_token"])):
        assert (await caller.chat(each)).status == 200
        assert (await caller.stream(each)).done
        assert (await caller.budget(each)).status == 200

    assert (await caller.block(user)).status == 200
    assert (await caller.chat(token)).status == 403
    assert (await caller.block(user, undo=True)).status == 200
    assert (await caller.chat(token)).status == 200
    assert (await caller.admin("GET", "/user?limit=10")).status == 200
    tier = await caller.admin("POST", f"/user/{user}/budget", json={"service_type": "s2s"})
    assert tier.status == 200, tier
    assert (await caller.chat(token)).status == 200

    rows_of_user = "select 1 from ledger where user_id = %(user)s"
    await until(lambda: len(system.sql(rows_of_user, user=user)) >= 4)  # rows come in batches
    rows = await caller.admin("GET", f"/user/{user}/ledger?limit=10")
    assert len(rows.json()["rows"]) >= 4

    revoked = await caller.ask("POST", f"{system.auth_url}/revoke", data={"token": token})
    assert revoked.status == 200

    async def refused() -> bool:
        return (await caller.chat(token)).status == 401

    await until(refused, 5)
    assert (await caller.admin("DELETE", f"/user/{user}")).status == 204
    for name in ("auth-1", "gateway-1"):
        ready = (await caller.readiness(name)).json()
        assert ready["status"] == "ready", ready


async def test_the_console_works(system: System, caller: Caller) -> None:
    session = {"Cookie": await sign_in(caller, "MLPA_ADMIN_KEY")}
    for path in (
        *("/admin", "/admin/users", "/admin/users?list=blocked", "/admin/users?list=installs", "/admin/devices"),
        *("/admin/audit", "/admin/service-types", "/admin/requests", "/admin/costs", "/admin/models"),
    ):
        shown = await caller.ask("GET", f"{system.auth_url}{path}", headers=session)
        assert shown.status == 200, path


def test_nothing_was_refused(system: System) -> None:
    """Neither server said no: a right that is missing may have been made up for."""
    logs = system.logs()
    assert "permission denied" not in logs["postgres"]
    with system.valkey.client() as client:
        refused = [entry for entry in client.acl_log() if b"config" not in str(entry).encode()]
        assert refused == []


@pytest.mark.parametrize(
    "statement",
    [
        "insert into devices (key_id, public_key) values ('k', '')",
        "insert into identities (identity, blocked_at) values ('i', now())",
        "insert into audit_log (actor, action, subject) values ('a', 'b', 'c')",
    ],
)
def test_what_a_gateway_holds_enrols_blocks_and_writes_nothing(system: System, statement: str) -> None:
    connection = psycopg2.connect(url(system.postgres, "mlpa_gateway", DATABASE))
    try:
        with connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(statement)
    finally:
        connection.close()
