"""Refusals in the audit log: every one counted, few rows, whatever anybody sends."""

from __future__ import annotations

from typing import Any

import pytest

from services.auth.audit import storage
from services.auth.audit.refusals import EVERY, MOST, OTHERS, SETTLE, Refusals
from services.auth.audit.storage import Actor
from shared.stores.postgres import Database, DatabaseUnavailable
from shared.telemetry.metrics import Registry
from tests.support.clock import Clock

NOBODY = Actor("unknown", "192.0.2.1")


@pytest.fixture
def refusals(database: Database, clock: Clock) -> Refusals:
    return Refusals(database, clock=clock)


async def written(database: Database) -> list[tuple[str, str, str, Any, str | None]]:
    entries = reversed(await storage.page(database, limit=1000))
    return [(entry.actor, entry.action, entry.subject, entry.new, entry.source) for entry in entries]


async def test_a_burst_is_one_row_and_what_follows_within_the_minute_is_the_next(
    refusals: Refusals, database: Database, clock: Clock
) -> None:
    first = [refusals.add(NOBODY, "refused", "keys", "api" if number % 3 else "console") for number in range(300)]
    assert first == [True] + [False] * 299
    await refusals.write()
    assert await written(database) == []
    clock.now += SETTLE
    await refusals.write()
    row = ("unknown", "refused", "keys", {"attempts": 300, "console": 100, "api": 200}, "192.0.2.1")
    assert await written(database) == [row]
    for second in range(59):
        clock.now += 1
        assert refusals.add(NOBODY, "refused", "keys", "api") is (second == 0)
        await refusals.write()
    assert await written(database) == [row]
    clock.now += 1
    await refusals.write()
    assert (await written(database))[1:] == [("unknown", "refused", "keys", {"attempts": 59, "api": 59}, "192.0.2.1")]
    clock.now += EVERY
    await refusals.write()
    clock.now += EVERY
    await refusals.write()
    assert len(await written(database)) == 2, "nothing came, nothing is written"


async def test_sources_without_number_make_few_rows_and_all_are_counted(
    refusals: Refusals, database: Database, clock: Clock
) -> None:
    for number in range(5 * MOST):
        refusals.add(Actor("unknown", f"2001:db8:{number:x}::"), "refused", "keys", "api")
    clock.now += SETTLE
    await refusals.write()
    rows = await written(database)
    assert len(rows) == MOST + 1
    assert rows[-1] == ("unknown", "refused", OTHERS, {"attempts": 4 * MOST, "api": 4 * MOST}, OTHERS)
    assert sum(new["attempts"] for _, _, _, new, _ in rows) == 5 * MOST


@pytest.mark.parametrize("subject", ["\0", "a\0b\udc80\n", "x" * 10_000, "\ud800"])
async def test_a_subject_of_any_characters_can_be_kept(
    refusals: Refusals, database: Database, clock: Clock, subject: str
) -> None:
    refusals.add(NOBODY, "forbidden", subject, "x")
    await refusals.write(everything=True)
    ((_, _, kept, _, _),) = await written(database)
    assert len(kept) == min(len(subject), 256)
    assert kept.isprintable()


async def test_an_outage_loses_none(postgres_url: str, unused_port: int, database: Database, clock: Clock) -> None:
    async with Database.connect(f"postgresql://x:x@127.0.0.1:{unused_port}/x") as nobody:
        refusals = Refusals(nobody, clock=clock)
        for _ in range(3):
            refusals.add(NOBODY, "refused", "keys", "api")
        with pytest.raises(DatabaseUnavailable):
            await refusals.write(everything=True)
        refusals.add(NOBODY, "refused", "keys", "api")
        refusals._database = database
        await refusals.write(everything=True)
    assert [new for _, _, _, new, _ in await written(database)] == [{"attempts": 4, "api": 4}]


async def test_the_end_of_the_process_writes_what_is_left(refusals: Refusals, database: Database) -> None:
    async with refusals.running(Registry()):
        refusals.add(NOBODY, "refused", "keys", "api")
    assert len(await written(database)) == 1
