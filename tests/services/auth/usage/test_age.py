"""The gauge of the ledger's age against the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.auth.usage.age import LedgerAge
from services.local.postgres import PostgresServer
from shared.stores import migrate
from shared.stores.postgres import Database
from shared.telemetry.metrics import Registry
from tests.services.auth.admin.conftest import Rows
from tests.services.auth.usage.test_usage import NOON, request
from tests.support.waiting import until


def shown(registry: Registry) -> float:
    lines = registry.render().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("ledger_oldest_seconds ")))


async def test_an_empty_ledger_has_no_age_and_another_that_of_its_oldest_row(postgres_url: str) -> None:
    registry, rows = Registry(), Rows(postgres_url)
    async with Database.connect(postgres_url) as database:
        age = LedgerAge(database, registry, clock=NOON.timestamp)
        await age.read()
        assert shown(registry) == 0
        for days in (3, 95, 40):
            request(rows, f"r{days}", NOON - timedelta(days=days))
        await age.read()
        assert shown(registry) == 95 * 86400
        rows.run("delete from ledger where id = %s", "r95")
        await age.read()
        assert shown(registry) == 40 * 86400


async def test_the_age_is_read_again_after_an_outage(own_postgres: PostgresServer) -> None:
    url = own_postgres.create_database("aged")
    migrate.upgrade(url)
    request(Rows(url), "old", datetime.now(UTC) - timedelta(days=2))
    registry = Registry()
    async with Database.connect(url, timeout=1) as database:
        own_postgres.stop()
        async with LedgerAge(database, registry, every=0.1).running():
            own_postgres.start()
            await until(lambda: shown(registry) >= 86400, 20)
    assert registry.background_failures.value("ledger_age") == 0
