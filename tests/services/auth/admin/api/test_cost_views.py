"""The costs as CSV."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from services.auth.admin.api.cost_views import cell
from services.auth.usage.costs import Costs, Span
from shared.stores.postgres import Database
from tests.services.auth.admin.conftest import USER, VIEWER, Person, Rows, bearer
from tests.services.auth.conftest import Auth

TODAY = datetime.now(UTC).date()
HEADER = "day,service_type,model,requests,prompt_tokens,completion_tokens,cost_usd"


def hours(rows: Rows, day: str, model: str, cost: int, *, lane: int = 0, **more: str) -> None:
    rows.run(
        "insert into ledger_hours values (%s, %s, %s, %s, 'fxa', %s, %s, 2, %s, 30, 4)",
        f"{day}T05:00:00Z",
        more.get("service_type", "ai"),
        model,
        more.get("purpose", "chat"),
        more.get("outcome", "success"),
        lane,
        cost,
    )


async def read(auth: Auth, query: str = "", key: str = VIEWER) -> tuple[int, str]:
    status, body, _ = await auth.ask("GET", f"/admin/costs.csv{query}", headers=bearer(key))
    return status, body.decode() if isinstance(body, bytes) else str(body)


async def test_sums_come_by_day_service_type_and_model_of_the_last_week(admin_auth: Auth, rows: Rows) -> None:
    for back in (0, 6, 7):
        hours(rows, f"{TODAY - timedelta(days=back)}", "gpt", 1_500_000_000)
    hours(rows, f"{TODAY}", "gpt", 3, lane=1, purpose="other")
    status, body = await read(admin_auth)
    assert (status, body.splitlines()) == (
        200,
        [HEADER, f"{TODAY - timedelta(days=6)},ai,gpt,2,30,4,1.5", f"{TODAY},ai,gpt,4,60,8,1.500000003"],
    )
    assert body.endswith("\r\n")


async def test_a_span_has_both_its_days_and_a_time_ends_before_it(admin_auth: Auth, rows: Rows) -> None:
    for day in ("2026-03-01", "2026-03-02", "2026-03-03"):
        hours(rows, day, "gpt", 10**9)
    _, days = await read(admin_auth, "?from=2026-03-01&to=2026-03-02&by=day")
    assert [line.split(",")[0] for line in days.splitlines()[1:]] == ["2026-03-01", "2026-03-02"]
    _, times = await read(admin_auth, "?from=2026-03-01T06:00:00Z&to=2026-03-03T05:00:00Z&by=day")
    assert [line.split(",")[0] for line in times.splitlines()[1:]] == ["2026-03-02"]
    _, later = await read(admin_auth, "?from=2026-03-01&to=2026-03-03&by=model,day")
    assert [line.split(",")[:2] for line in later.splitlines()[1:]] == [["gpt", f"2026-03-0{day}"] for day in (1, 2, 3)]
    _, whole = await read(admin_auth, "?from=2026-03-01&to=2026-03-03&by=model,outcome")
    assert whole.splitlines() == [
        "model,outcome,requests,prompt_tokens,completion_tokens,cost_usd",
        "gpt,success,6,90,12,3",
    ]


async def test_what_is_no_span_or_dimension_is_refused(admin_auth: Auth) -> None:
    for query in [
        "?by=user_id",
        "?by=day,day",
        "?by=day,%20model",
        "?by=day;drop",
        "?from=yesterday",
        "?from=2026-13-01",
        "?from=2026-03-02&to=2026-03-01",
        "?from=2024-01-01&to=2026-01-01",
        "?from=2026-03-01T00:00:00",
        "?to=0001-01-01",
        "?to=9999-12-31",
        "?from=2026-03-01&from=2026-03-02",
        "?from=2026-W10",
    ]:
        status, body = await read(admin_auth, query)
        assert (status, "invalid_request" in body) == (400, True), query


@pytest.mark.parametrize("by", ["day,model", "model,day"])
async def test_a_span_with_days_is_read_a_day_at_a_time(rows: Rows, postgres_url: str, by: str) -> None:
    for day in (1, 2, 3):
        for model in "ab":
            hours(rows, f"2026-03-0{day}", model, 1)
    span = Span.of({"from": "2026-03-01", "to": "2026-03-03"}, datetime.now(UTC))
    async with Database.connect(postgres_url) as database:
        assert [len(part) async for part in Costs(database).slices(span, by.split(","))] == [2, 2, 2]


async def test_a_session_gets_it_too_and_nobody_else(admin_auth: Auth, person: Person) -> None:
    page = await person.get("/admin/costs.csv")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    assert page.headers["Content-Disposition"].startswith("attachment; filename=")
    assert (await admin_auth.ask("GET", "/admin/costs.csv"))[0] == 401
    assert (await read(admin_auth, key="wrong"))[0] == 401
    assert (await admin_auth.ask("HEAD", "/admin/costs.csv", headers=bearer()))[:2] == (200, b"")


async def test_a_name_that_a_spreadsheet_would_run_is_quoted(admin_auth: Auth, rows: Rows) -> None:
    hours(rows, f"{TODAY}", '=HYPERLINK("https://evil.test")', 1)
    rows.request("one", USER, model="+1, and more")
    _, body = await read(admin_auth, "?by=model")
    assert [line[0] for line in csv.reader(io.StringIO(body))] == [
        "model",
        "'+1, and more",
        '\'=HYPERLINK("https://evil.test")',
    ]
    assert "\r\n\"'=" in body


@given(st.text())
def test_a_cell_is_read_back_and_never_begins_as_a_formula(text: str) -> None:
    ((read_back, _),) = csv.reader(io.StringIO(f"{cell(text)},x\r\n", newline=""))
    assert read_back.removeprefix("'") == text.removeprefix("'")
    assert not read_back.startswith(("=", "+", "-", "@", "\t", "\r"))


async def test_a_month_with_many_models_comes_in_parts_and_whole(admin_auth: Auth, rows: Rows) -> None:
    rows.run(
        "insert into ledger_hours select date '2026-03-01' + d, 'ai', 'm' || m, 'chat', 'fxa', 'success', 0, 1, 1000, "
        "1, 1 from generate_series(0, 29) d, generate_series(1, 300) m"
    )
    _, body = await read(admin_auth, "?from=2026-03-01&to=2026-03-30")
    lines = list(csv.DictReader(io.StringIO(body)))
    assert len(lines) == 9000
    assert sum(Decimal(line["cost_usd"]) for line in lines) == Decimal("0.009")
