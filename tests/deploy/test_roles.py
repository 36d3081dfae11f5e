"""The roles of PostgreSQL and the users of Redis: every table has a decision, and the files make what they say."""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psycopg2
import pytest
import redis
from click.testing import CliRunner
from redis.backoff import NoBackoff
from redis.retry import Retry

import services.auth
import services.gateway
from migrations import grants
from services.cli.commands import cli
from services.local.postgres import PostgresServer, binaries
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.state import decisions, layout
from shared.state.layout import Standing
from shared.state.refusals import Word
from shared.stores import migrate
from shared.stores.postgres import Query
from shared.stores.redis import connect
from tests.support.service_types import service_type
from tests.support.sql import sql

DEPLOY = Path(__file__).parents[2] / "deploy"
PASSWORDS = {
    "mlpa_owner": "MLPA_OWNER_PASSWORD",
    "mlpa_auth": "MLPA_AUTH_PASSWORD",
    "mlpa_gateway": "MLPA_GATEWAY_PASSWORD",
    "litellm": "LITELLM_PASSWORD",
    "mlpa_monitor": "MLPA_MONITOR_PASSWORD",
}


def run_roles(
    server: PostgresServer, database: str = "app_attest", **environment: str
) -> subprocess.CompletedProcess[str]:
    """``deploy/roles.sql`` as an operator runs it, with each role's name as its password."""
    psql = str(binaries(server.account) / "psql")
    given = {variable: role for role, variable in PASSWORDS.items()} | environment
    return subprocess.run(
        [psql, "--no-psqlrc", "-v", f"database={database}", "-f", str(DEPLOY / "roles.sql"), server.url()],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
    )


def acl_lines(**digests: str) -> list[str]:
    """The users of ``deploy/redis.acl``, with the digests of their passwords in it."""
    text = (DEPLOY / "redis.acl").read_text()
    for name, digest in digests.items():
        text = text.replace(name, digest)
    return text.splitlines()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server with passwords, so that nobody can take another role."""
    folder = tmp_path_factory.mktemp("roles")
    with PostgresServer(folder / "data", free_port(), durable=False, password="superuser") as running:
        done = run_roles(running)
        assert done.returncode == 0, done.stderr
        migrate.upgrade(url(running, "mlpa_owner"))
        yield running


def url(server: PostgresServer, role: str, database: str = "app_attest") -> str:
    return f"postgresql://{role}:{role}@127.0.0.1:{server.port}/{database}"


def run(server: PostgresServer, role: str, statement: str, database: str = "app_attest") -> None:
    sql(url(server, role, database), statement)


def test_every_table_has_a_decision(server: PostgresServer) -> None:
    tables = sql(
        url(server, "mlpa_owner"),
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') "
        "and not relispartition",
    )
    assert grants.GRANTS.keys() == {name for (name,) in tables}
    for rights in grants.GRANTS.values():
        assert rights.keys() <= set(grants.ROLES)


def test_the_audit_log_is_written_and_read_alone() -> None:
    assert grants.GRANTS["audit_log"] == {grants.AUTH: ("select", "insert")}


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("mlpa_gateway", "insert into devices (key_id, public_key) values ('k', '')"),
        ("mlpa_gateway", "update devices set revoked_at = null"),
        ("mlpa_gateway", "select public_key from devices"),
        ("mlpa_gateway", "insert into identities (identity, blocked_at) values ('i', now())"),
        ("mlpa_gateway", "update identities set blocked_at = null"),
        (
            "mlpa_gateway",
            "insert into users (user_id, identity, service_type, budget_tier) values ('i:a', 'i', 'a', 'a')",
        ),
        ("mlpa_gateway", "update users set budget_tier = 'ai'"),
        ("mlpa_gateway", "insert into revocations (jti, user_id, expires_at) values ('j', 'i:a', now())"),
        ("mlpa_gateway", "delete from revocations"),
        ("mlpa_gateway", "select * from audit_log"),
        ("mlpa_gateway", "insert into audit_log (actor, action, subject) values ('a', 'b', 'c')"),
        ("mlpa_gateway", "delete from ledger"),
        ("mlpa_gateway", "update ledger set user_id = 'i:a'"),
        ("mlpa_gateway", "insert into redis_changes (identity, kind, payload) values ('i', 'block', '{}')"),
        ("mlpa_gateway", "select * from usage_hours"),
        ("mlpa_gateway", "select sealed from erasures"),
        ("mlpa_gateway", "select rename_requests('i:a', 'erased.x:a', now(), 1)"),
        ("mlpa_gateway", "select rename_entries('i', 'erased.x')"),
        ("mlpa_auth", "update audit_log set actor = 'mallory'"),
        ("mlpa_auth", "delete from audit_log"),
        ("mlpa_auth", "truncate audit_log"),
        ("mlpa_auth", "update audit_log set subject = 's'"),
        ("mlpa_auth", "update ledger set user_id = 'i:a'"),
        ("mlpa_auth", "update devices set public_key = ''"),
        ("mlpa_auth", "update ledger set cost_nano = 0"),
        ("mlpa_auth", "delete from ledger"),
        ("mlpa_auth", "update alembic_version set version_num = '0'"),
        *((role, "create table mine (a int)") for role in ("mlpa_auth", "mlpa_gateway")),
        *((role, "create temporary table mine (a int)") for role in ("mlpa_auth", "mlpa_gateway")),
        *(("mlpa_monitor", f"select * from public.{table}") for table in ("users", "ledger", "audit_log", "devices")),
        *((role, "create role mine") for role in PASSWORDS),
        *((role, "copy (select 1) to program 'true'") for role in PASSWORDS),
    ],
)
def test_a_role_can_not(server: PostgresServer, role: str, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(server, role, statement, "litellm" if role == "litellm" else "app_attest")


DIGEST, UID = f"erased.fxa.{64 * 'e'}", 32 * "0"


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (UID, 32 * "1"),
        (UID, "erased.x"),
        (UID, f"erased.fxa.{63 * 'e'}"),
        (UID, f"erased.app_attest.{64 * 'e'}"),
        (UID, f"{DIGEST}x"),
        (DIGEST, f"erased.fxa.{64 * 'f'}"),
        (DIGEST, "erased.x"),
        ("nobody", DIGEST),
    ],
)
def test_auth_can_rename_records_from_and_to_the_digest_of_an_identity_alone(
    server: PostgresServer, was: str, becomes: str
) -> None:
    for call in (f"rename_requests('{was}:a', '{becomes}:a', now(), 1)", f"rename_entries('{was}', '{becomes}')"):
        with pytest.raises(psycopg2.errors.RaiseException, match="erased identity"):
            run(server, "mlpa_auth", f"select {call}")


def test_auth_can_rename_records_within_a_service_type_alone(server: PostgresServer) -> None:
    for was, becomes in ((UID, DIGEST), (DIGEST, UID)):
        with pytest.raises(psycopg2.errors.RaiseException, match="one service type"):
            run(server, "mlpa_auth", f"select rename_requests('{was}:a', '{becomes}:b', now(), 1)")
        run(server, "mlpa_auth", f"select rename_requests('{was}:a', '{becomes}:a', now(), 1)")
    run(server, "mlpa_auth", f"select rename_entries('{UID}', '{DIGEST}')")


@pytest.mark.parametrize(
    ("role", "database"),
    [
        ("litellm", "app_attest"),
        *((role, "litellm") for role in PASSWORDS if role != "litellm"),
        ("mlpa_auth", "postgres"),
    ],
)
def test_a_role_enters_its_own_database_alone(server: PostgresServer, role: str, database: str) -> None:
    if database == "postgres":
        run(server, role, "select 1", database)  # PostgreSQL's own, which has nothing
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(server, role, "create table mine (a int)", database)
        return
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        run(server, role, "select 1", database)


def test_litellm_makes_its_own_tables(server: PostgresServer) -> None:
    run(
        server,
        "litellm",
        'create type "JobStatus" as enum (\'a\'); create table "LiteLLM_X" (a "JobStatus")',
        "litellm",
    )


def test_the_file_can_be_run_again_and_takes_over_what_was_there(own_postgres: PostgresServer) -> None:
    migrate.upgrade(own_postgres.create_database("app_attest"))
    for _ in range(2):
        done = run_roles(own_postgres)
        assert done.returncode == 0, done.stderr
        migrate.upgrade(url(own_postgres, "mlpa_owner"))
    run(own_postgres, "mlpa_auth", "insert into audit_log (actor, action, subject) values ('a', 'b', 'c')")
    run(own_postgres, "mlpa_owner", "alter table ledger add column more int")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(own_postgres, "mlpa_gateway", "update ledger set more = 1")


def test_a_right_that_is_taken_away_is_gone_after_the_next_migration(server: PostgresServer) -> None:
    run(
        server,
        "mlpa_owner",
        "grant delete on ledger to mlpa_gateway; grant update (public_key) on devices to mlpa_auth",
    )
    run(server, "mlpa_gateway", "delete from ledger where id = 'x'")
    migrate.upgrade(url(server, "mlpa_owner"))
    for role, statement in (
        ("mlpa_gateway", "delete from ledger"),
        ("mlpa_auth", "update devices set public_key = ''"),
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(server, role, statement)


def test_the_statements_that_mlpa_migrate_shows_grant_the_same(server: PostgresServer) -> None:
    granted = []
    psql = str(binaries(server.account) / "psql")
    for name in ("app_attest", "shown"):
        assert run_roles(server, name).returncode == 0
        if name == "shown":
            shown = CliRunner().invoke(cli, ["migrate", "--sql"]).stdout
            argv = [psql, "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", url(server, "mlpa_owner", name)]
            done = subprocess.run(argv, input=shown, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        granted.append(sql(server.url(name), PRIVILEGES))
    assert granted[0] == granted[1]
    assert len(granted[0]) > 50


PRIVILEGES = """
    select grantee, table_name, column_name, privilege_type from information_schema.column_privileges
    where grantee in ('mlpa_auth', 'mlpa_gateway') and table_name !~ '^ledger_[0-9]'
    union all
    select grantee, routine_name, routine_schema, privilege_type from information_schema.routine_privileges
    where grantee in ('mlpa_auth', 'mlpa_gateway') order by 1, 2, 3, 4
"""


def test_no_role_is_made_without_its_password(own_postgres: PostgresServer) -> None:
    psql = str(binaries(own_postgres.account) / "psql")
    home = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    argv = [psql, "--no-psqlrc", "-f", str(DEPLOY / "roles.sql"), own_postgres.url()]
    done = subprocess.run(argv, env=home, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    with pytest.raises(psycopg2.OperationalError):
        run(own_postgres, "mlpa_auth", "select 1")


# --- Redis


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server with the file as it is, except that the default user may look on."""
    names = ("AUTH", "GATEWAY", "MONITOR")
    lines = acl_lines(**{f"{name}_DIGEST": hashlib.sha256(name.encode()).hexdigest() for name in names})
    assert lines[0] == "user default off"
    path = tmp_path / "users.acl"
    path.write_text("\n".join(["user default on nopass ~* &* +@all", *lines[1:], ""]))
    with ValkeyServer(tmp_path / "valkey", free_port(), options={"aclfile": str(path)}) as running:
        yield running


def client(server: ValkeyServer, user: str) -> redis.Redis:
    return redis.Redis(port=server.port, username=f"mlpa_{user}", password=user.upper())


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("gateway", "GET mlpa:session:x"),
        ("gateway", "HSET mlpa:session:x key admin"),
        ("gateway", "SET mlpa:fxa:v1:x entry"),
        ("gateway", "SET mlpa:{s00}:c:x 1"),
        ("gateway", "DEL mlpa:{s00}:c:x"),
        ("gateway", "HSET mlpa:rl:source:x now 0"),
        ("monitor", "GET mlpa:{s00}:c:x"),
        ("monitor", "KEYS *"),
        ("monitor", "SLOWLOG GET 1"),
        ("monitor", "CONFIG GET *"),
        ("auth", "HSET mlpa:{s00}:totals x 0"),
        ("auth", "HDEL mlpa:{s00}:outbox x"),
        ("auth", "GET mlpa:{s00}:d:x"),
        *((user, "SET other 1") for user in ("auth", "gateway")),
        *((user, "FLUSHALL") for user in ("auth", "gateway")),
        *((user, "KEYS *") for user in ("auth", "gateway")),
        *((user, "SCAN 0") for user in ("auth", "gateway")),
        *((user, "CONFIG GET *") for user in ("auth", "gateway")),
        *((user, "ACL LIST") for user in ("auth", "gateway")),
        *((user, "SCRIPT FLUSH") for user in ("auth", "gateway")),
        *((user, "SHUTDOWN") for user in ("auth", "gateway")),
        *((user, "MONITOR") for user in ("auth", "gateway")),
        *((user, "PUBLISH a b") for user in ("auth", "gateway")),
    ],
)
def test_a_user_of_redis_can_not(valkey: ValkeyServer, user: str, command: str) -> None:
    with client(valkey, user) as connection, pytest.raises(redis.exceptions.NoPermissionError):
        connection.execute_command(*command.split())


def test_a_script_has_no_more_rights_than_its_user(valkey: ValkeyServer) -> None:
    with client(valkey, "auth") as connection, pytest.raises(redis.ResponseError, match="No permissions"):
        connection.eval("return redis.call('HGETALL', KEYS[1])", 1, "mlpa:{s00}:totals")


async def test_auth_can_run_its_scripts(valkey: ValkeyServer) -> None:
    async with connect(f"redis://mlpa_auth:AUTH@127.0.0.1:{valkey.port}/0") as auth:
        row = service_type(total_budget_nano=5)
        recorded = decisions.Recorded("ai", Standing.GOOD, 0, ["j"])
        with client(valkey, "gateway") as gateway:
            gateway.hset(layout.of_identity("i").user("i:ai"), "x:1", "5|6")
            gateway.zadd(layout.of_identity("i").requests_window("i:ai"), {"1": 1})
        outlook = await decisions.outlook(auth, "i:ai", {"ai": row}, recorded, least=1, empty=1)
        assert Word.TOTAL_UNKNOWN in outlook.refusals
        assert await decisions.totals(auth, [row]) == {}
        await decisions.set_user(auth, "i:ai", "ai")
        await decisions.read_users(auth, ["i:ai"])
        known = await decisions.known(auth, "i", "ai")
        await decisions.remember(auth, "i", "ai", Standing.GOOD, known.version)
        assert await decisions.forget(auth, "i", ["ai"]) == 1
        with client(valkey, "gateway") as gateway:
            gateway.hdel(layout.of_identity("i").user("i:ai"), "x:1")
        assert await decisions.forget(auth, "i", ["ai"]) == 0


def test_nobody_comes_in_without_a_password(valkey: ValkeyServer) -> None:
    stranger = redis.Redis(port=valkey.port, username="mlpa_auth", password="GATEWAY", retry=Retry(NoBackoff(), 0))
    with stranger as connection, pytest.raises(redis.AuthenticationError):
        connection.ping()


def test_only_named_commands_are_granted() -> None:
    for line in acl_lines()[1:]:
        assert " -@all " in line
        assert not re.search(r" \+@| ~\*| &\*| nopass|allkeys|allcommands", line)


def statements(package: ModuleType) -> Iterator[tuple[str, Query]]:
    """The statements that the modules of a package have as constants, with their names."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            found = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
            for query in found:
                if isinstance(query, Query) and re.match(r"\s*(select|insert|update|delete|with|explain)\b", query.sql):
                    yield f"{module.name}.{name}", query


@pytest.mark.parametrize(
    ("role", "package", "by_others"),
    [
        ("mlpa_auth", services.auth, ("services.auth.erasure.storage._SPEND_ROWS",)),  # of LiteLLM's own database
        # What the owner runs, to prune the ledger
        ("mlpa_gateway", services.gateway, ("services.gateway.ledger.storage._PRUNE", "services.gateway.ledger.parti")),
    ],
)
def test_a_service_may_run_each_of_its_statements(
    server: PostgresServer, role: str, package: ModuleType, by_others: tuple[str, ...]
) -> None:
    """PostgreSQL checks rights when it explains, whatever a conflict or a condition would spare."""
    refused, checked = [], 0
    connection = psycopg2.connect(url(server, role))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for name, query in statements(package):
                if name.startswith(by_others):
                    continue
                checked += 1
                try:
                    sql = query.sql if query.sql.startswith("explain") else f"explain {query.sql}"
                    cursor.execute(sql, dict.fromkeys(re.findall(r"%\((\w+)\)s", query.sql)))
                except psycopg2.errors.InsufficientPrivilege as error:
                    refused.append(f"{name}: {error}")
    finally:
        connection.close()
    assert checked >= 9
    assert not refused
