"""Identities: the parts of a user id, and its shard."""

from __future__ import annotations

import pytest

from shared.domain import identity

UID = "0123456789abcdef0123456789abcdef"
KEY = "A" * 42 + "E="


@pytest.mark.parametrize("user", [f"{UID}:ai", f"{KEY}:ai", f"{UID}:s2s-2"])
def test_user_ids_split_into_identity_and_service_type(user: str) -> None:
    who, row = identity.split_user(user)
    assert identity.user_id(who, row) == user
    assert 0 <= identity.shard(who) < 64


@pytest.mark.parametrize(
    "user", ["", ":", UID, f"{UID}:", f"{UID.upper()}:ai", f"x{UID}:ai", f"{UID}:ai\n", f"{UID}:a:b"]
)
def test_what_is_no_user_id_is_refused(user: str) -> None:
    with pytest.raises(ValueError):
        identity.split_user(user)


def test_shards_are_spread_evenly() -> None:
    counts = [0] * 64
    for number in range(64_000):
        counts[identity.shard(f"{number:032x}")] += 1
    assert 800 < min(counts) <= max(counts) < 1200
