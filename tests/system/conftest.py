"""The systems that these tests run on, and the tables that they print when all is over."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.local.postgres import PostgresServer
from services.local.process import free_port
from shared.stores import migrate
from tests.deploy.test_roles import acl_lines, run_roles, url
from tests.system.clients import Caller
from tests.system.harness import DATABASE, DATABASE_PASSWORD, HOST, System, make_template, running_system

#: Texts that are printed at the end of the run: ``(title, lines)``.
TABLES: list[tuple[str, list[str]]] = []

FULL = bool(os.environ.get("MLPA_TEST_FULL"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, lines in TABLES:
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of PostgreSQL with the newest schema, to be copied."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[System]:
    """A whole system with two gateways that all tests share: each leaves every part running as it found it.

    Its services have the rights of ``deploy/roles.sql`` and ``deploy/redis.acl`` and no others.
    """
    folder = tmp_path_factory.mktemp("system")
    subprocess.run(["cp", "-a", template, folder / "roles"], check=True)
    with PostgresServer(folder / "roles", free_port(), durable=False, password=DATABASE_PASSWORD) as server:
        done = run_roles(server, DATABASE)
        assert done.returncode == 0, done.stderr
        migrate.upgrade(url(server, "mlpa_owner", DATABASE))
    listens = {"postgres": free_port(), "valkey": free_port()}
    own = {
        name: {
            "DATABASE_URL": f"postgresql://mlpa_{name}:mlpa_{name}@{HOST}:{listens['postgres']}/{DATABASE}",
            "REDIS_URL": f"redis://mlpa_{name}:{name.upper()}@{HOST}:{listens['valkey']}/0",
        }
        for name in ("auth", "gateway")
    }
    names = ("AUTH", "GATEWAY", "MONITOR")
    users = acl_lines(**{f"{name}_DIGEST": hashlib.sha256(name.encode()).hexdigest() for name in names})[1:]
    rights = {f"user {user}": rest for _, user, rest in (line.split(maxsplit=2) for line in users)}
    options = {"gateways": 2, "listens": listens, "own": own, "valkey_options": rights}
    with running_system(folder / "shared", server.data, **options) as whole:
        yield whole


@pytest.fixture
async def caller(system: System) -> AsyncIterator[Caller]:
    async with Caller.open(system) as one:
        yield one
