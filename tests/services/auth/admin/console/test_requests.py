"""Requests, costs, models and total budgets on the console."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shared.state.layout import BUILT, EPOCH, SHARD_KEYS, SUM_SPENT
from shared.state.packed import sum_field
from shared.stores.redis import Client
from tests.services.auth.admin.conftest import ADMIN_SETTINGS, UID, USER, People, Person, Rows
from tests.services.auth.conftest import Auth, StartAuth
from tests.support.service_types import toml
from tests.support.waiting import until

CATALOGUE = {
    "models": [
        {
            "name": "mistral-small",
            "service_types": ["ai", "s2s"],
            "input_usd_per_token": "0.0000002",
            "output_usd_per_token": "0.0000006",
            "context_window": 128000,
        },
        {"name": "unpriced", "service_types": [], "refused": "it has no price"},
    ]
}


def refuse(rows: Rows, request_id: str, user: str | None = USER, code: str = "budget_exceeded") -> None:
    rows.run(
        "insert into refusals values (now(), %s, %s, %s, 'ai', 'gpt', %s, %s)",
        request_id,
        request_id,
        user,
        code,
        "5 of 5 USD of the service type ai are spent.",
    )


async def test_a_complaint_with_a_request_id_leads_to_the_reason_in_words(person: Person, rows: Rows) -> None:
    rows.user()
    rows.request("one")
    refuse(rows, "complaint-7")
    page = await person.get("/admin/find?q=complaint-7")
    assert page.url == "/admin/requests?request=complaint-7"
    assert "budget_exceeded 5 of 5 USD of the service type ai are spent." in page.words
    assert "r-one" not in page.text
    assert (await person.get(f"/admin/find?q={quote(USER)}")).url == f"/admin/users/{quote(USER, safe='')}"
    assert (await person.get(f"/admin/find?q={UID[:5]}")).url == f"/admin/users?q={UID[:5]}"
    assert (await person.get("/admin/find")).url == "/admin/users?q="


async def test_a_users_page_has_what_was_refused_lately(person: Person, rows: Rows) -> None:
    rows.user()
    refuse(rows, "mine")
    refuse(rows, "of-another", "another:ai")
    page = await person.get(f"/admin/users/{quote(USER, safe='')}")
    assert "5 of 5 USD of the service type ai are spent." in page.words
    assert "of-another" not in page.text


async def test_requests_are_listed_filtered_and_malformed_filters_refused(person: Person, rows: Rows) -> None:
    rows.request("one", model="mistral")
    rows.request("two", outcome="abort")
    refuse(rows, "three", None, "invalid_token")
    everything = await person.get("/admin/requests")
    assert all(f"<option>{code}</option>" in everything.text for code in ("success", "timeout", "invalid_token"))
    assert all(name in everything.words for name in ("r-one", "r-two", "three", "not known yet"))
    assert "r-two" not in (await person.get("/admin/requests?model=mistral")).text
    assert "r-one" not in (await person.get("/admin/requests?code=invalid_token")).text
    assert "No such requests" in (await person.get("/admin/requests?until=2020-01-01T00:00")).words
    for bad in ("until=soon", "until=2026-13-01T00:00", "cursor=x"):
        assert (await person.get(f"/admin/requests?{bad}")).status == 400


async def test_costs_are_shown_by_each_dimension(person: Person, rows: Rows) -> None:
    rows.request("one", cost=1_250_000_000)
    rows.request("two", "11112222333344445555666677778888:s2s", model="<b>", cost=2 * 10**9)
    for by, shown in {"service_type": "s2s", "model": "<b>", "credential": "fxa", "purpose": "chat"}.items():
        page = await person.get(f"/admin/costs?by={by}")
        assert page.status == 200
        assert shown in page.words
        assert "$3.25" in page.words
    assert "<b>" not in (await person.get("/admin/costs?by=model")).text.split("<h1>")[1].replace("&lt;b&gt;", "")
    assert (await person.get("/admin/costs?from=x")).status == 400


@pytest.fixture
async def gateway() -> AsyncIterator[dict[str, Any]]:
    """A gateway's ops port, which tells ``catalogue`` below /catalogue."""
    told: dict[str, Any] = {"catalogue": json.dumps(CATALOGUE)}

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=told["catalogue"], content_type="application/json")

    app = web.Application()
    app.router.add_get("/catalogue", answer)
    async with TestServer(app) as server:
        yield told | {"url": f"http://127.0.0.1:{server.port}", "told": told}


async def test_models_have_price_window_health_and_the_reason_of_a_refused_one(
    gateway: dict[str, Any], start_auth: StartAuth, people: People, rows: Rows
) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, gateway_catalogue_url=f"{gateway['url']}/catalogue")
    person = await people.signed_in(auth)
    for number in range(3):
        rows.request(f"r{number}", model="mistral-small", outcome="error" if number else "success")
    page = await person.get("/admin/models")
    assert "mistral-small yes ai s2s $0.2 $0.6 128,000 – 3 67%" in page.words
    assert "unpriced no it has no price none" in page.words
    for hostile in ("[]", "{", '{"models": [{"name": 1}]}', json.dumps({"models": [{"name": "n" * 300}] * 9})):
        gateway["told"]["catalogue"] = hostile
        assert "The models of the gateways can't be read." in (await person.get("/admin/models")).words


@pytest.mark.parametrize(
    ("spent", "lately", "words"),
    [
        (None, 0, "The gateways have not added up yet what its users spent"),
        (4, 0, "ai 40% · $4.00 of $10.00 · lasts until the reset"),
        (4, 3, "ai 40% · $4.00 of $10.00 · runs out"),
        (10, 3, "ai 100% · $10.00 of $10.00 · spent , resets"),
    ],
)
async def test_the_overview_says_when_a_total_budget_runs_out(
    start_auth: StartAuth,
    people: People,
    rows: Rows,
    redis: Client,
    tmp_path: Path,
    spent: int | None,
    lately: int,
    words: str,
) -> None:
    (tmp_path / "types.toml").write_text(toml(name="ai", total_budget="10", duration="30d"))
    person = await people.come(await start_auth(**ADMIN_SETTINGS, service_types=tmp_path / "types.toml"))
    if spent is not None:
        run_id = (await redis.info("server"))["run_id"]
        name, period = "ai:2592000", int(datetime.now(UTC).timestamp()) // 2_592_000
        for number, shard in enumerate(SHARD_KEYS):
            sums = {sum_field(SUM_SPENT, name, period): spent * 10**9 if number == 7 else 0}
            await redis.hset(shard.totals, mapping={EPOCH: run_id, f"{BUILT}{name}": 1, **sums})
    if lately:
        rows.request("one", cost=lately * 10**9)
    assert words in (await person.sign_in()).words


async def test_users_are_listed_by_standing_tier_kind_and_spend(admin_auth: Auth, people: People, rows: Rows) -> None:
    install = "01234567-89ab-cdef-0123-456789abcdef"
    names = {"blocked": f"{'b' * 32}:ai", "installs": f"{install}:ai", "tier:s2s": f"{'c' * 32}:ai", "plain": USER}
    for name, user in names.items():
        rows.user(user, tier="s2s" if name == "tier:s2s" else None)
    rows.run("insert into identities (identity, blocked_at) values (%s, now())", "b" * 32)
    rows.request("new", names["blocked"], ago="1 minute", cost=77)
    person = await people.signed_in(admin_auth)
    for name in ("blocked", "installs", "tier:s2s"):
        page = await person.get(f"/admin/users?list={name}")
        assert [other for other, user in names.items() if f">{user}<" in page.text] == [name]
    assert "There are no such users" in (await person.get("/admin/users?list=revoked")).words

    async def spenders() -> bool:
        words = (await person.get("/admin/users?list=spend")).words
        return "that spent most in their period" in words and names["blocked"] in words

    await until(spenders)
    for odd in ("list=none", "list=tier:", "list=tier:%00", "list=blocked&cursor=x"):
        assert (await person.get(f"/admin/users?{odd}")).status in (200, 400)
