"""Refused requests are kept for a week."""

from __future__ import annotations

from services.auth.usage.old_refusals import OldRefusals
from shared.stores.postgres import Database, Query
from shared.telemetry.metrics import Registry

INSERT = Query.text(
    "insert into refusals select now() - make_interval(days => :days), 'day' || :days, 'r', null, 'ai', '', 'x', 'y'"
)
DAYS = Query.text("select id from refusals order by at")


async def test_what_is_older_than_a_week_is_deleted(postgres_url: str) -> None:
    async with Database.connect(postgres_url) as database:
        for days in (0, 6, 8, 30):
            await database.execute(INSERT, days=days)
        await OldRefusals(database, Registry()).delete()
        assert [row["id"] for row in await database.fetch(DAYS)] == ["day6", "day0"]
