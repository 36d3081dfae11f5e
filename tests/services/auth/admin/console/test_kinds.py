"""The pages' wording of credential kinds."""

from __future__ import annotations

from urllib.parse import quote

from services.auth.exchange.credentials import KINDS
from tests.services.auth.admin.conftest import UID, Person, Rows


async def test_a_users_page_says_what_it_signs_in_with(person: Person, rows: Rows) -> None:
    for identity, words in [
        (UID, "None. This user signs in with a Firefox account."),
        ("A" * 43 + "=", "None. This user signs in with an app on an enrolled device."),
        ("2f1a6c1e-8d0b-4f57-9f0c-3b6f1f3c9a10", "None. This user signs in with an app from Google Play."),
        ("of-no-kind", "None."),
    ]:
        rows.user(f"{identity}:ai")
        shown = (await person.get(f"/admin/users/{quote(f'{identity}:ai', safe='')}")).words
        assert f"Device {words} What was done" in shown, identity


async def test_a_search_that_finds_nothing_says_what_ids_look_like(person: Person) -> None:
    page = await person.get("/admin/users?q=nobody")
    for kind in KINDS:
        assert f"{kind.words.identity} ({kind.words.form})" in page.words
    assert 'placeholder="FxA uid or App Attest key id or Play install id"' in page.text


async def test_installs_stand_beside_devices_and_accounts(person: Person, rows: Rows) -> None:
    for identity in (UID, "A" * 43 + "=", "2f1a6c1e-8d0b-4f57-9f0c-3b6f1f3c9a10"):
        rows.user(f"{identity}:ai")
    shown = (await person.get("/admin/users")).words
    for identity, kind in ((UID, "FxA uid"), ("A" * 43 + "=", "App Attest key id"), ("3c9a10", "Play install id")):
        assert f"{identity}:ai {kind}" in shown


async def test_the_overview_has_rejections_by_step(person: Person) -> None:
    before = (await person.get("/admin")).words
    assert "Rejected by Play Integrity Nothing was rejected" in before
    body = {"user_id": "2f1a6c1e-8d0b-4f57-9f0c-3b6f1f3c9a10", "integrity_token": "t", "package_name": "org.other"}
    async with person.session.post(f"{person.url}/verify/play", json=body) as answer:
        assert answer.status == 401
    after = (await person.get("/admin")).words
    assert "Rejected by Play Integrity package 1 By step" in after
