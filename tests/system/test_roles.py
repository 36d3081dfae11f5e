"""Both services under real traffic, with the rights of ``deploy/roles.sql`` and ``deploy/redis.acl`` and no others."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterator

import psycopg2
import pytest

from services.local.postgres import PostgresServer
from services.local.process import free_port
from shared.stores import migrate
from tests.deploy.test_roles import acl_lines, run_roles, url
from tests.support.waiting import until
from tests.system.clients import Caller
from tests.system.harness import DATABASE, DATABASE_PASSWORD, HOST, SECRETS, System


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A whole system whose services are roles and users of their own; the tables were made by the owner."""
    folder = tmp_path_factory.mktemp("roles")
    template = PostgresServer(folder / "template", free_port(), durable=False, password=DATABASE_PASSWORD)
    with template:
        done = run_roles(template, DATABASE)
        assert done.returncode == 0, done.stderr
        migrate.upgrade(url(template, "mlpa_owner", DATABASE))
    ports = {"postgres": free_port(), "valkey": free_port()}
    own = {
        name: {
            "DATABASE_URL": f"postgresql://mlpa_{name}:mlpa_{name}@{HOST}:{ports['postgres']}/{DATABASE}",
            "REDIS_URL": f"redis://mlpa_{name}:{name.upper()}@{HOST}:{ports['valkey']}/0",
        }
        for name in ("auth", "gateway")
    }
    whole = System(folder / "system", template.data, listens=ports, own=own)
    digests = {
        f"{name.upper()}_DIGEST": hashlib.sha256(name.upper().encode()).hexdigest() for name in (*own, "monitor")
    }
    for line in acl_lines(**digests)[1:]:
        _, user, rights = line.split(maxsplit=2)
        whole.valkey.options[f"user {user}"] = rights
    asyncio.run(whole.start())
    try:
        yield whole
    finally:
        whole.stop()


@pytest.fixture
async def caller(confined: System) -> AsyncIterator[Caller]:
    async with Caller.open(confined) as one:
        yield one


async def test_clients_and_operators_miss_nothing(confined: System, caller: Caller) -> None:
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

    await until(lambda: len(confined.sql("select 1 from ledger")) >= 6)  # rows come in batches
    rows = await caller.admin("GET", f"/user/{user}/ledger?limit=10")
    assert len(rows.json()["rows"]) >= 4

    revoked = await caller.ask("POST", f"{confined.auth_url}/revoke", data={"token": token})
    assert revoked.status == 200

    async def refused() -> bool:
        return (await caller.chat(token)).status == 401

    await until(refused, 5)
    assert (await caller.admin("DELETE", f"/user/{user}")).status == 204
    for name in ("auth-1", "gateway-1"):
        ready = (await caller.readiness(name)).json()
        assert ready["status"] == "ready", ready


async def test_the_console_works(confined: System, caller: Caller) -> None:
    page = await caller.ask("GET", f"{confined.auth_url}/admin/sign-in")
    csrf = re.search(rb'name="csrf" value="([^"]+)"', page.body)
    assert csrf
    cookies = {}
    for header in page.headers.getall("Set-Cookie"):  # type: ignore[attr-defined]
        name, _, value = header.partition(";")[0].partition("=")
        cookies[name] = value
    form = {"csrf": csrf[1].decode(), "key": SECRETS["MLPA_ADMIN_KEY"]}
    signed_in = await caller.ask("POST", f"{confined.auth_url}/admin/sign-in", data=form, cookies=cookies)
    assert signed_in.status == 303
    for header in signed_in.headers.getall("Set-Cookie"):  # type: ignore[attr-defined]
        name, _, value = header.partition(";")[0].partition("=")
        cookies[name] = value
    for path in (
        *("/admin", "/admin/users", "/admin/users?list=blocked", "/admin/users?list=installs", "/admin/devices"),
        *("/admin/audit", "/admin/service-types", "/admin/requests", "/admin/costs", "/admin/models"),
    ):
        shown = await caller.ask("GET", f"{confined.auth_url}{path}", cookies=cookies)
        assert shown.status == 200, path


def test_nothing_was_refused(confined: System) -> None:
    """Neither server said no: a right that is missing may have been made up for."""
    logs = confined.logs()
    assert "permission denied" not in logs["postgres"]
    with confined.valkey.client() as client:
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
def test_what_a_gateway_holds_enrols_blocks_and_writes_nothing(confined: System, statement: str) -> None:
    connection = psycopg2.connect(
        f"postgresql://mlpa_gateway:mlpa_gateway@{HOST}:{confined.listens['postgres']}/{DATABASE}"
    )
    try:
        with connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(statement)
    finally:
        connection.close()
