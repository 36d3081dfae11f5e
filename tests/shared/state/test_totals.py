"""The sums of a service type decide to the nano-dollar."""

from __future__ import annotations

import pytest

from shared.state.refusals import Word
from shared.state.totals import Total, add_up, lost
from tests.support.service_types import service_type

ROW = service_type(total_budget_nano=1000, duration_seconds=3600)


@pytest.mark.parametrize(
    ("spent", "reserved", "refusal"),
    [
        (700, 200, None),
        (700, 201, (Word.TOTAL_RESERVED, 1)),
        (900, 1, (Word.TOTAL_RESERVED, 1)),
        (901, 0, (Word.TOTAL_LARGE, 0)),
        (960, 0, (Word.TOTAL_LARGE, 0)),
        (961, 0, (Word.TOTAL_EXCEEDED, 3589.5)),
        (1200, 0, (Word.TOTAL_EXCEEDED, 3589.5)),
    ],
)
def test_a_request_is_refused_by_what_all_users_spent_and_reserved(
    spent: int, reserved: int, refusal: tuple[Word, float] | None
) -> None:
    total = Total(5, spent, reserved)
    assert total.room(ROW) == 1000 - spent - reserved
    assert total.refusal(ROW, 100, 40, 5 * 3600 + 10.5) == refusal


def test_shards_add_up_in_the_newest_period_and_only_where_none_is_missing() -> None:
    names = ("a:1", "b:1", "c:1")
    shards = [
        [9, 0, 1, 2, 7, 3, 4, 7, 5, 6],
        [9, 0, 10, 20, 6, 30, 40, -1, 0, 0],
        [9, 0, 100, 200, 7, 300, 400, 0, 500, 600],
    ]
    assert add_up(names, shards) == {"a:1": Total(0, 111, 222), "b:1": Total(7, 303, 404)}
    assert [lost(names, shard) for shard in shards] == [[], ["c:1"], []]
