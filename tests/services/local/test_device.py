"""The simulated device: its objects are as good as real ones, under its own root alone."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from services.auth.appattest.assertion import verify_assertion
from services.auth.appattest.attestation import Attestation, verify_attestation
from services.auth.appattest.encoding import canonical_key_id
from services.auth.appattest.errors import Rejected, Step
from services.auth.appattest.policy import Policy, apple_root_pem, load_roots
from services.local.device import Device
from services.local.pki import Pki

TEAM, BUNDLE, CHALLENGE = "A1B2C3D4E5", "org.example.app", "5a" * 32
PKI = Pki.create()


def policy(pem: bytes = PKI.root_pem) -> Policy:
    return Policy(team_id=TEAM, bundle_ids=frozenset({BUNDLE}), environment="development", roots=load_roots(pem))


def enrol(device: Device, pem: bytes = PKI.root_pem) -> Attestation:
    return verify_attestation(
        device.attest(CHALLENGE),
        client_data_hash=hashlib.sha256(CHALLENGE.encode()).digest(),
        key_id=device.key_id,
        bundle_id=BUNDLE,
        policy=policy(pem),
        now=datetime.now(UTC),
    )


@pytest.mark.parametrize(("version", "category"), [(None, None), ("7.1", 3)])
def test_it_enrols_and_asserts_with_a_counter_that_advances(version: str | None, category: int | None) -> None:
    device = Device(PKI, TEAM, BUNDLE, bundle_version=version, validation_category=category)
    attestation, sign = enrol(device), device.assert_
    assert attestation.key_id == device.key_id
    assert attestation.public_key_x962 == device.public_key_x962
    for expected in (1, 2, 3):
        assertion = verify_assertion(
            sign(b"{}"),
            client_data_hash=hashlib.sha256(b"{}").digest(),
            public_key_x962=attestation.public_key_x962,
            last_counter=expected - 1,
            bundle_id=BUNDLE,
            policy=policy(),
        )
        assert assertion.counter == expected
        assert (assertion.launch.bundle_version, assertion.launch.validation_category) == (version, category)


def test_it_is_not_trusted_under_apples_root_or_another_test_root() -> None:
    device = Device(PKI, TEAM, BUNDLE)
    for pem, step in ((apple_root_pem(), Step.ISSUER), (Pki.create().root_pem, Step.CHAIN)):
        with pytest.raises(Rejected) as caught:
            enrol(device, pem)
        assert caught.value.step is step


def test_it_goes_on_where_it_was_after_a_round_through_json() -> None:
    device = Device(PKI, TEAM, BUNDLE, bundle_version="1", validation_category=4)
    sign = device.assert_
    sign(b"{}")
    again = Device.from_json(device.to_json())
    assert again.to_json() == device.to_json()
    assert (again.key_id, again.counter) == (device.key_id, 1)
    assert enrol(again).key_id == device.key_id


def test_its_key_id_is_written_as_the_service_names_it() -> None:
    device = Device(PKI, TEAM, BUNDLE)
    assert canonical_key_id(device.key_id_b64) == device.key_id_b64


def test_an_authority_survives_a_round_through_json() -> None:
    again = Pki.from_json(PKI.to_json())
    assert again.root_pem == PKI.root_pem
    assert enrol(Device(again, TEAM, BUNDLE))
