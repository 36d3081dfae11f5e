"""The ids of requests."""

from __future__ import annotations

import time
import uuid

from services.gateway.budget.models import new_id


def test_ids_are_uuids_of_version_7_in_the_order_of_time() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_id() for _ in range(100)]
    while time.time_ns() // 1_000_000 == before:
        pass
    ids.append(later := new_id())
    assert {(one.version, one.variant) for one in map(uuid.UUID, ids)} == {(7, uuid.RFC_4122)}
    assert before <= int(ids[0][:12], 16) <= time.time_ns() // 1_000_000
    assert len(set(ids)) == 101
    assert later > ids[0]
