"""Digests of erased identities: nobody can tell whose they are, and sums by shard and kind stay what they were."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from services.auth.standing.digests import Digests
from shared.domain.identity import Credential, is_user, shard
from shared.stores.postgres import Database, Query

IDENTITIES = st.one_of(
    *(st.from_regex(kind.identity, fullmatch=True) for kind in Credential), st.text(min_size=1, max_size=40)
)


@given(IDENTITIES)
def test_a_digest_has_the_shard_of_its_identity_and_is_no_user(identity: str) -> None:
    digests = Digests([b"new", b"old"])
    assert digests.of(identity) == digests.all(identity)[0] == Digests([b"new"]).of(identity)
    assert digests.all(identity)[1] == Digests([b"old"]).of(identity) != digests.of(identity)
    for digest in digests.all(identity):
        assert shard(digest) == shard(identity)
        assert not is_user(f"{digest}:ai")
        assert Credential.of(digest) is None
        assert identity not in digest or len(identity) < 8


@given(IDENTITIES)
def test_what_is_sealed_is_opened_by_the_same_secret_alone(identity: str) -> None:
    sealed = Digests([b"old"]).seal(identity)
    assert Digests([b"new", b"old"]).unseal(sealed) == identity
    assert Digests([b"new"]).unseal(sealed) is None
    assert Digests([b"old"]).unseal(sealed[:-1]) is None
    assert Digests([b"old"]).seal(identity) != sealed


@pytest.mark.parametrize(
    ("identity", "kind"),
    [
        ("0" * 32, "fxa"),
        ("A" * 43 + "=", "app_attest"),
        ("12345678-9abc-4def-8123-456789abcdef", "play"),
        ("somebody", "other"),
    ],
)
async def test_the_database_tells_the_kind_of_credential_by_it(database: Database, identity: str, kind: str) -> None:
    query = Query.text("select credential_of(:user_id) as kind")
    for name in (identity, Digests([b"secret"]).of(identity)):
        assert (await database.fetch(query, user_id=f"{name}:ai"))[0]["kind"] == kind
