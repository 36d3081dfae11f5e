"""The kinds of credential: the consequences of declaring one."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from services.auth.exchange.credentials import KINDS
from shared.domain.identity import Credential, is_user, user_id
from tests.services.auth.conftest import Auth

IDENTITIES = {kind: st.from_regex(kind.identity, fullmatch=True) for kind in Credential}


def test_every_kind_has_one_verifier() -> None:
    assert sorted(kind.kind for kind in KINDS) == sorted(Credential)


@given(data=st.data())
@pytest.mark.parametrize("kind", Credential)
def test_an_identity_has_the_length_of_its_kind_and_is_only_of_kinds_that_prove_the_same(
    kind: Credential, data: st.DataObject
) -> None:
    identity = data.draw(IDENTITIES[kind])
    assert len(identity) == kind.identity_length
    same = [other for other in Credential if other.identity.pattern == kind.identity.pattern]
    assert [other for other in Credential if other.identity.fullmatch(identity)] == same
    assert Credential.of(identity) is same[0]
    assert is_user(user_id(identity, "ai"))


def test_what_no_credential_proves_is_of_no_kind() -> None:
    for identity in ("", "somebody", "0" * 31, "0" * 32 + "\n", "A" * 44):
        assert Credential.of(identity) is None


async def test_the_documented_types_are_those_that_can_be_exchanged(auth: Auth) -> None:
    _, document, _ = await auth.ask("GET", "/openapi.json")
    form = document["paths"]["/token"]["post"]["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"]
    documented = form["properties"]["subject_token_type"]["enum"]
    assert documented == [kind.subject_token_type for kind in Credential]
    for kind in documented:
        status, body = await auth.exchange("junk", kind)
        assert (status, "subject_token_type" in body["error_description"]) == (400, False), kind
    status, body = await auth.exchange("junk", "urn:example:other")
    assert (status, "subject_token_type" in body["error_description"]) == (400, True)
