"""The OpenAPI document of auth against auth itself: requests made from it meet no 5xx and nothing undocumented."""

from __future__ import annotations

import asyncio

import pytest

from tests.openapi import try_all
from tests.services.auth.admin.conftest import ADMIN_SETTINGS, USER, Rows, bearer
from tests.services.auth.conftest import StartAuth

UNLIMITED = dict.fromkeys(
    (
        "exchange_limit_per_identity",
        "exchange_limit_per_source",
        "challenge_limit_per_source",
        "enroll_limit_per_source",
    ),
    0,
)


@pytest.fixture
def rows(postgres_url: str) -> Rows:
    return Rows(postgres_url)


async def test_requests_made_from_the_document_get_what_it_says(start_auth: StartAuth, rows: Rows) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, **UNLIMITED)
    rows.user()
    rows.request("one")
    _, document, _ = await auth.ask("GET", "/openapi.json")
    tried = await asyncio.to_thread(try_all, document, auth.url, bearer())
    assert {path for _, path in tried} == set(document["paths"])
    assert rows.run("select count(*) from users where user_id = %s", USER) == [(1,)]
