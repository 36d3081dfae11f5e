"""The OpenAPI document of auth against auth itself: requests made from it meet no 5xx and nothing undocumented."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.openapi import try_all
from tests.openapi_examples import examples
from tests.services.auth.admin.conftest import ADMIN_SETTINGS, USER, Rows, bearer
from tests.services.auth.conftest import Auth, StartAuth

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


EXAMPLE_USER = "0123456789abcdef0123456789abcdef:ai"
EXAMPLE_OF_ERASURE = "fedcba9876543210fedcba9876543210:ai"
EXAMPLE_DEVICE = "3q2+7wARIjNEVWZ3iJmqu8zd7v8AESIzRFVmd4iZqrs="
#: What the examples of these are answered with: they are of the right form, but nobody's credentials.
REFUSED = {
    ("POST", "/token"): (400, "invalid_request"),
    ("POST", "/fxa/events"): (401, "invalid_token"),
    ("POST", "/verify/attest"): (401, "invalid_challenge"),
    ("POST", "/verify/play"): (401, "integrity_rejected"),
}


async def test_every_example_of_the_document_is_taken(start_auth: StartAuth, rows: Rows) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, **UNLIMITED)
    rows.user(EXAMPLE_USER)
    rows.user(EXAMPLE_OF_ERASURE)
    rows.device(EXAMPLE_DEVICE)
    _, document, _ = await auth.ask("GET", "/openapi.json")
    last = ("DELETE", "/user/{user_id}")
    tried = dict(examples(document))
    for name, example in sorted(tried.items(), key=lambda item: item[0] == last):
        headers = {**example.headers, **bearer()}
        status, body, _ = await auth.ask(example.method, example.path, data=example.data, headers=headers)
        if name in REFUSED:
            assert (status, body["error"]) == REFUSED[name], (name, body)
        else:
            assert 200 <= status < 300, (name, status, body)


async def test_the_files_of_the_docs_are_kept_by_browsers_for_good_under_their_versions_address(auth: Auth) -> None:
    _, page, _ = await auth.ask("GET", "/api/docs")
    files = re.findall(rb'"(/api/docs/assets/[^"]+)"', page)
    assert len(files) == 3
    for file in files:
        status, _, headers = await auth.ask("GET", file.decode())
        assert (status, headers["Cache-Control"]) == (200, "public, max-age=31536000, immutable")
        _, _, headers = await auth.ask("GET", file.decode().partition("?")[0])
        assert headers["Cache-Control"] == "no-cache"
