"""Requests are found whether they were admitted or refused, in time however many there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from services.auth.errors import InvalidRequest
from services.auth.usage import requests
from services.auth.usage.requests import Requests, Sought
from shared.stores.postgres import Database, Query
from tests.services.auth.admin.conftest import USER, Rows

NOW = datetime.now(UTC)
REFUSE = Query.text(
    "insert into refusals (at, id, request_id, user_id, service_type, model, code, reason) "
    "values (now() - make_interval(secs => :ago), :id, :request_id, :user_id, 'ai', :model, :code, 'In words.')"
)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with Database.connect(postgres_url) as database:
        yield database


@pytest.fixture
def rows(postgres_url: str) -> Iterator[Rows]:
    rows = Rows(postgres_url)
    yield rows
    rows.close()


async def refuse(database: Database, name: str, *, ago: float, user: str | None = USER, code: str = "rpm") -> None:
    await database.execute(REFUSE, ago=ago, id=name, request_id=f"r-{name}", user_id=user, model="gpt", code=code)


async def test_admitted_and_refused_requests_stand_in_one_list_newest_first(database: Database, rows: Rows) -> None:
    for number in range(6):
        rows.request(f"a{number}", ago=f"{10 * number} seconds")
        await refuse(database, f"b{number}", ago=10 * number + 5)
    found, seen, cursor = Requests(database), [], None
    for _ in range(4):
        page = await found.page(Sought(), limit=4, cursor=cursor)
        seen += [row.id for row in page.rows]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"{kind}{number}" for number in range(6) for kind in "ab"]
    assert cursor is None


@pytest.mark.parametrize(
    ("sought", "ids"),
    [
        (Sought(request_id="r-one"), ["one"]),
        (Sought(request_id="r-two"), ["two"]),
        (Sought(user_id=USER), ["one", "two"]),
        (Sought(user_id="another:ai"), ["three", "four"]),
        (Sought(user_id="another:ai", code="rpm"), ["four"]),
        (Sought(model="mistral"), ["three"]),
        (Sought(service_type="s2s"), ["five"]),
        (Sought(code="rpm"), ["two", "four"]),
        (Sought(code="abort"), ["five"]),
        (Sought(until=NOW - timedelta(seconds=3000)), ["four", "five"]),
        (Sought(request_id="r-one", model="none"), []),
        (Sought(request_id="r-one\0"), []),
    ],
)
async def test_requests_are_found_by_each_field(database: Database, rows: Rows, sought: Sought, ids: list[str]) -> None:
    rows.request("one", ago="1 second")
    await refuse(database, "two", ago=10)
    rows.request("three", "another:ai", ago="20 seconds", model="mistral")
    await refuse(database, "four", ago=4000, user="another:ai")
    rows.request("five", "third:s2s", ago="5000 seconds", outcome="abort")
    page = await Requests(database).page(sought, limit=10)
    assert [row.id for row in page.rows] == ids
    assert page.next_cursor is None


async def test_a_search_looks_through_a_bounded_part_and_the_next_page_goes_on_from_there(
    database: Database, rows: Rows
) -> None:
    rows.run(
        "insert into ledger select 'n' || n, 'r', %s, 'ai', case when n = 10500 then 'rare' else 'gpt' end, 'chat', "
        "1, 1, 1, 86400, 1, 'success', now() - n * interval '1 second', now() from generate_series(1, 12000) n",
        USER,
    )
    found = Requests(database)
    first = await found.page(Sought(model="rare"), limit=10)
    assert (first.rows, first.looked_back_to is not None) == ([], True)
    second = await found.page(Sought(model="rare"), limit=10, cursor=first.next_cursor)
    assert [row.id for row in second.rows] == ["n10500"]
    assert (second.next_cursor, second.looked_back_to) == (None, None)
    assert requests._SCANNED == 10_000


async def test_a_foreign_cursor_is_refused(database: Database) -> None:
    for cursor in ("nonsense", "WyJ4IiwieSJd"):
        with pytest.raises(InvalidRequest):
            await Requests(database).page(Sought(), limit=10, cursor=cursor)


async def test_the_refusals_of_a_user_are_told_with_their_reason(database: Database) -> None:
    await refuse(database, "one", ago=5)
    await refuse(database, "two", ago=1, user=None)
    (row,) = await Requests(database).refused(USER, limit=10)
    assert (row.id, row.code, row.reason, row.refused) == ("one", "rpm", "In words.", True)
