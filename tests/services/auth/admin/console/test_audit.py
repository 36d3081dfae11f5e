"""The audit log's pages, turned forwards and back."""

from __future__ import annotations

import html
import re

from services.auth.admin.console.pages import PER_PAGE
from tests.services.auth.admin.conftest import Page, Person, Rows


def subjects(page: Page) -> list[str]:
    return re.findall(r"entry-\d\d", page.words)


def link(page: Page, rel: str) -> str | None:
    found = re.search(rf'rel="{rel}" href="([^"]+)"', page.text)
    return html.unescape(found[1]) if found else None


async def test_the_audit_log_can_be_read_to_its_end_and_back(person: Person, rows: Rows) -> None:
    for number in range(2 * PER_PAGE):
        rows.run(
            "insert into audit_log (actor, action, subject) values ('jane', 'user.block', %s)", f"entry-{number:02d}"
        )
    pages = [await person.get("/admin/audit")]
    while following := link(pages[-1], "next"):
        pages.append(await person.get(following))
    assert [len(subjects(page)) for page in pages] == [PER_PAGE, PER_PAGE, 0], "the sign-in is the oldest"
    assert link(pages[0], "prev") is None
    back = await person.get(link(pages[2], "prev") or "")
    assert subjects(back) == subjects(pages[1])
    back = await person.get(link(back, "prev") or "")
    assert subjects(back) == subjects(pages[0])
    assert link(back, "prev") is None


async def test_a_cursor_of_another_list_is_a_400(person: Person) -> None:
    assert (await person.get("/admin/audit?cursor=WyJuZXh0Iiwibm8iXQ")).status == 400
