"""The gauge of the ledger's age against the ledger."""

from __future__ import annotations

from datetime import timedelta

from services.auth.usage.age import LedgerAge
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
        age = LedgerAge(database, registry, clock=NOON.timestamp, every=0.01)
        await age.read()
        assert shown(registry) == 0
        for days in (3, 95, 40):
            request(rows, f"r{days}", NOON - timedelta(days=days))
        await age.read()
        assert shown(registry) == 95 * 86400
        async with age.running():
            rows.run("delete from ledger where id = %s", "r95")
            await until(lambda: shown(registry) == 40 * 86400)
