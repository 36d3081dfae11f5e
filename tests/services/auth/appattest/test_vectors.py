"""Real objects, made by Apple's devices, get their expected verdict."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from datetime import datetime
from typing import Any

import pytest

from services.auth.appattest.assertion import verify_assertion
from services.auth.appattest.attestation import verify_attestation
from services.auth.appattest.encoding import canonical_key_id, decode_key_id
from services.auth.appattest.errors import AppAttestError
from services.auth.appattest.policy import Policy, load_roots
from tests.services.auth.appattest import vectors

VECTORS = vectors.load()

pytestmark = pytest.mark.skipif(not VECTORS, reason="no vectors: set APP_ATTEST_VECTORS")


def verify(vector: dict[str, Any], **changes: Any) -> Any:
    team_id, bundle_id = vector["app_id"].split(".", 1)
    policy = Policy(
        team_id=team_id,
        bundle_ids=frozenset({bundle_id}),
        environment=changes.get("environment", vector.get("environment", "production")),
        roots=load_roots(vector["root_pem"].encode()),
    )
    if vector["kind"] == "attestation":
        return verify_attestation(
            b64decode(vector["attestation_b64"]),
            client_data_hash=client_data_hash(vector, "challenge_b64"),
            key_id=decode_key_id(vector["key_id_b64"]),
            bundle_id=bundle_id,
            policy=policy,
            now=datetime.fromisoformat(changes.get("now", vector["valid_at"])),
        )
    return verify_assertion(
        b64decode(vector["assertion_b64"]),
        client_data_hash=client_data_hash(vector, "client_data_b64"),
        public_key_x962=b64decode(vector["public_key_x962_b64"]),
        last_counter=vector["last_counter"],
        bundle_id=bundle_id,
        policy=policy,
    )


def client_data_hash(vector: dict[str, Any], hashed: str) -> bytes:
    if "client_data_hash_b64" in vector:
        return b64decode(vector["client_data_hash_b64"])
    return hashlib.sha256(b64decode(vector[hashed])).digest()


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
def test_a_real_object_gets_its_verdict(vector: dict[str, Any]) -> None:
    verdict, _, step = vector["expected"].partition(":")
    if verdict == "reject":
        with pytest.raises(AppAttestError) as caught:
            verify(vector)
        assert caught.value.step == step
        return
    result = verify(vector)
    if vector["kind"] == "attestation":
        assert result.public_key_x962 == b64decode(vector["public_key_x962_b64"])
        assert result.key_id == b64decode(canonical_key_id(vector["key_id_b64"]))
        assert result.environment == vector["environment"]
        assert (result.launch.bundle_version is not None) == (vector["auth_data_len"] > 164)
    elif "counter" in vector:
        assert result.counter == vector["counter"]


ATTESTATIONS = [vector for vector in VECTORS if vector["kind"] == "attestation" and vector["expected"] == "accept"]


@pytest.mark.parametrize("vector", ATTESTATIONS, ids=[vector["id"] for vector in ATTESTATIONS])
def test_a_real_attestation_is_good_in_its_time_and_environment_alone(vector: dict[str, Any]) -> None:
    other = {"production": "development", "development": "production"}[vector["environment"]]
    for changes, step in (
        ({"environment": other}, "aaguid"),
        ({"now": "2019-01-01T00:00:00+00:00"}, "validity"),
        ({"now": vector["leaf_not_after"].replace("+00:00", ".000001+00:00")}, "validity"),
    ):
        with pytest.raises(AppAttestError) as caught:
            verify(vector, **changes)
        assert caught.value.step == step
    assert verify(vector, now=vector["leaf_not_after"])
