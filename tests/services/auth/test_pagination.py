"""Pages that are found by key, read forwards and backwards."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from services.auth import pagination
from services.auth.errors import InvalidRequest
from services.auth.pagination import Page


def read(rows: list[str], cursor: str | None, limit: int) -> Page[str]:
    """A page of a list, as a storage would give it."""
    place = pagination.place(cursor, 1)
    rows = rows[::-1] if place.backwards else rows
    begin = rows.index(place.key[0]) + 1 if place.key else 0
    return pagination.page(place, rows[begin : begin + limit + 1], limit, lambda row: (row,))


@given(count=st.integers(0, 30), limit=st.integers(1, 8))
def test_the_way_forward_and_the_way_back_show_every_row_once(count: int, limit: int) -> None:
    rows = [f"{number:03d}" for number in range(count)]
    pages, cursor = [read(rows, None, limit)], None
    assert pages[0].previous_cursor is None
    while (cursor := pages[-1].next_cursor) is not None:
        pages.append(read(rows, cursor, limit))
    assert [row for page in pages for row in page.rows] == rows
    back = [pages[-1]]
    while (cursor := back[-1].previous_cursor) is not None:
        back.append(read(rows, cursor, limit))
    assert [page.rows for page in reversed(back)] == [page.rows for page in pages]
    assert all(page.next_cursor is not None for page in back[1:])


@given(cursor=st.text(max_size=40))
def test_a_cursor_that_no_page_gave_is_refused_as_malformed(cursor: str) -> None:
    try:
        place = pagination.place(cursor, 1)
    except InvalidRequest:
        return
    assert not cursor or place.key is not None


def test_a_cursor_of_another_list_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        pagination.place(pagination.encode("next", "id", "time"), 1)
