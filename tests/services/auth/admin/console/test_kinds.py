"""The pages' wording of credential kinds."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from services.auth.exchange.credentials import KINDS
from tests.services.auth.admin.conftest import UID, Person, Rows


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (UID, "None. This user signs in with a Firefox account."),
        ("A" * 43 + "=", "None. This user signs in with an app on an enrolled device."),
        ("2f1a6c1e-8d0b-4f57-9f0c-3b6f1f3c9a10", "None. This user signs in with an app from Google Play."),
        ("of-no-kind", "None."),
    ],
)
async def test_a_users_page_says_what_it_signs_in_with(person: Person, rows: Rows, identity: str, words: str) -> None:
    rows.user(f"{identity}:ai")
    shown = (await person.get(f"/admin/users/{quote(f'{identity}:ai', safe='')}")).words
    assert f"Device {words} What was done" in shown


async def test_a_search_that_finds_nothing_says_what_ids_look_like(person: Person) -> None:
    page = await person.get("/admin/users?q=nobody")
    for kind in KINDS:
        assert f"{kind.words.identity} ({kind.words.form})" in page.words
    assert 'placeholder="FxA uid or App Attest key id or Play install id"' in page.text
