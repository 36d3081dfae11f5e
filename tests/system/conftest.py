"""The systems that these tests run on, and the tables that they print when all is over."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.system.clients import Caller
from tests.system.harness import System, make_template, running_system

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
    """A whole system with two gateways that all tests share: each leaves every part running as it found it."""
    with running_system(tmp_path_factory.mktemp("system") / "shared", template, gateways=2) as whole:
        yield whole


@pytest.fixture
async def caller(system: System) -> AsyncIterator[Caller]:
    async with Caller.open(system) as one:
        yield one
