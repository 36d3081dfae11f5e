"""The real PostgreSQL, Valkey and LiteLLM that tests run on: each is started once per session, on a free port."""

from __future__ import annotations

import gc
import itertools
import os
import secrets
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from services.local import litellm
from services.local.fxa_keys import SigningKey
from services.local.litellm import LiteLLMServer
from services.local.postgres import PostgresServer
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.stores import migrate
from shared.stores.postgres import Database
from shared.stores.redis import Client, connect
from tests.support.clock import Clock
from tests.support.databases import Databases

settings.register_profile(
    "unhurried",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # busy is no bug
    max_examples=200 if os.environ.get("MLPA_TEST_FULL") else 30,
)
settings.load_profile("unhurried")

TEMPLATE = "mlpa_template"
_ROOM = 4 * 2**30
_numbers = itertools.count(1)


def pytest_collection_finish() -> None:
    """Keep what the tests consist of out of garbage collection, which is a tenth of their CPU time otherwise."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the tests that did not run, and what they lack."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        terminalreporter.section("Not run here")
        for reason, number in sorted(reasons.items()):
            terminalreporter.write_line(f"{number:4} {'test' if number == 1 else 'tests'}: {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    where = report.longrepr
    return where[2].removeprefix("Skipped: ") if isinstance(where, tuple) else str(where)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's server. A test that kills or pauses one starts its own (``own_postgres``).

    It is in memory where that has room: each test's database is a copy of 460 files.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > _ROOM
    with (
        tempfile.TemporaryDirectory(prefix="mlpa-postgres-", dir=memory if roomy else None) as folder,
        PostgresServer(Path(folder, "data"), free_port(), durable=False) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """Name of a database with the newest schema, which is copied for each test."""
    migrate.upgrade(postgres_server.create_database(TEMPLATE))
    return TEMPLATE


@pytest.fixture(scope="session")
def databases(postgres_server: PostgresServer, postgres_template: str) -> Databases:
    return Databases(postgres_server, postgres_template)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, databases: Databases) -> Iterator[str]:
    """A database with the newest schema and no rows."""
    name = databases.take()
    yield postgres_server.url(name)
    databases.give_back(name)


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh database without any schema."""
    name = f"empty_{next(_numbers)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def postgres_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder without databases: a copy is made in a tenth of the time of initdb."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres") / "data", free_port(), durable=False)
    server.initialise()
    return server.data


@pytest.fixture
def own_postgres(tmp_path: Path, postgres_data: Path) -> Iterator[PostgresServer]:
    """A running server for this test alone, to be killed, paused and restarted; its databases are empty."""
    subprocess.run(["cp", "-a", postgres_data, tmp_path / "postgres"], check=True)
    with PostgresServer(tmp_path / "postgres", free_port(), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """The session's server. A test that kills or pauses one starts its own (``own_valkey``)."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey") / "data", free_port()) as server:
        yield server


@pytest.fixture
def redis_url(valkey_server: ValkeyServer) -> str:
    """An empty Valkey."""
    with valkey_server.client() as client:
        client.flushall()
        client.script_flush()
    return valkey_server.url


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A running server for this test alone, to be killed, paused and restarted."""
    with ValkeyServer(tmp_path / "valkey", free_port()) as server:
        yield server


@pytest.fixture(scope="session")
def litellm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteLLMServer]:
    """The real LiteLLM with the models of a local run; starts in 5 s. Most tests should use a double instead."""
    folder = tmp_path_factory.mktemp("litellm")
    venv = litellm.environment(folder)
    litellm.install(venv)
    with LiteLLMServer(folder / "data", free_port(), master_key=f"sk-{secrets.token_hex(24)}", venv=venv) as server:
        yield server


@pytest.fixture
def unused_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    return free_port()


@pytest.fixture
def unused_ports() -> Callable[[], int]:
    """Gives another such port at each call."""
    return free_port


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Client]:
    async with connect(redis_url) as client:
        yield client


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with Database.connect(postgres_url) as database:
        yield database


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def fxa_keys() -> list[SigningKey]:
    """FxA's keys, made once, since making them is slow."""
    return [SigningKey.generate() for _ in range(3)]
