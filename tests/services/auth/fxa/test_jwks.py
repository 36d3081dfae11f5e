"""FxA's key set: its usable keys, the times of its fetches, and the effects of outages and rotations."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, strategies as st

from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.jwks import parse_key_set
from services.auth.fxa.services import FxAVerifier
from services.local.faults import Fault
from services.local.fxa import TokenOrder
from services.local.fxa_keys import SigningKey
from shared.errors import DependencyUnavailable
from shared.service.health import CheckFailed
from shared.telemetry.metrics import Registry
from tests.services.auth.fxa.harness import UID, Rig
from tests.support.exposition import metric


def number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8)).rstrip(b"=").decode()


def key_set(*keys: Any) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def test_usable_keys_are_taken_by_their_id(fxa_keys: list[SigningKey]) -> None:
    keys = parse_key_set(key_set(*(key.public() for key in fxa_keys)))
    assert list(keys) == [key.kid for key in fxa_keys]


@pytest.mark.parametrize(
    "change",
    [
        {"kty": "EC"},
        {"alg": "RS512"},
        {"alg": "HS256"},
        {"use": "enc"},
        {"kid": None},
        {"kid": ""},
        {"kid": 7},
        {"n": None},
        {"n": "!!"},
        {"n": ""},
        {"n": number(2**1024 - 1)},
        {"n": number(2**2047 - 1)},
        {"n": number(2**4096 + 1)},
        {"n": number(2**2048 - 2)},
        {"n": "A" * 2000},
        {"e": "AQ"},
        {"e": number(65536)},
        {"e": number(2**40 + 1)},
        {"e": ""},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_key_that_is_not_for_this_is_passed_over(fxa_keys: list[SigningKey], change: dict[str, Any]) -> None:
    good, other = fxa_keys[0].public(), fxa_keys[1].public()
    assert list(parse_key_set(key_set({**other, **change}, good))) == [good["kid"]]
    with pytest.raises(ValueError, match="no usable key"):
        parse_key_set(key_set({**other, **change}))


def test_a_weak_rsa_key_is_passed_over() -> None:
    numbers = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    weak = {"kty": "RSA", "kid": "weak", "n": number(numbers.n), "e": number(numbers.e)}
    with pytest.raises(ValueError, match="no usable key"):
        parse_key_set(key_set(weak))


def test_the_private_part_of_a_key_is_not_taken(fxa_keys: list[SigningKey]) -> None:
    private = {**fxa_keys[0].private.to_dict(), "kid": "k"}
    assert parse_key_set(key_set(private))["k"].is_public()


jwk_values = st.none() | st.integers() | st.text() | st.sampled_from(["RSA", "RS256", "sig", "AQAB", "AAAA" * 80])


@given(
    st.binary()
    | st.lists(st.dictionaries(st.sampled_from(["kty", "kid", "n", "e", "alg", "use"]), jwk_values)).map(
        lambda keys: key_set(*keys)
    )
)
def test_no_bytes_make_it_fail_otherwise(body: bytes) -> None:
    try:
        keys = parse_key_set(body)
    except ValueError:
        return
    assert keys


async def test_it_is_fetched_at_the_start_and_again_before_it_is_too_old(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        await verifier.verify(rig.jwt())
        before = rig.calls("jwks")
        rig.clock.now += 200
        await verifier.keys.tick()
        assert rig.calls("jwks") == before
        rig.clock.now += 41
        await verifier.keys.tick()
        assert rig.calls("jwks") == before + 1


async def test_many_tokens_with_unknown_key_ids_make_one_fetch_in_ten_seconds(rig: Rig) -> None:
    claims = rig.fxa.claims(TokenOrder(uid=UID))
    tokens = [rig.fxa.sign(claims, {"kid": f"unknown-{number}"}) for number in range(300)]

    async def refused(verifier: FxAVerifier, number: int) -> None:
        with pytest.raises(InvalidFxAToken, match="unknown key id"):
            await verifier.verify(tokens[number])

    async with rig.verifier() as verifier:
        before = rig.calls("jwks")
        for _ in range(3):
            await asyncio.gather(*(refused(verifier, number) for number in range(300)))
        assert rig.calls("jwks") == before + 1
        rig.clock.now += 9.9
        await refused(verifier, 1)
        assert rig.calls("jwks") == before + 1
        rig.clock.now += 0.1
        await asyncio.gather(*(refused(verifier, number) for number in range(300)))
        assert rig.calls("jwks") == before + 2


async def test_a_rotation_fails_no_token_of_either_key(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        old = rig.jwt()
        for _ in range(3):
            rig.fxa.ring.rotate()
            new = rig.jwt()
            assert (await verifier.verify(new)).source == "local"
            assert (await verifier.verify(old)).uid == UID
            await verifier.keys.refresh()  # as the background does between two rotations
            old = new


async def test_a_key_that_fxa_took_back_verifies_nothing(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        token = rig.jwt()
        for _ in range(3):
            rig.fxa.ring.rotate()
        await verifier.keys.refresh()
        with pytest.raises(InvalidFxAToken, match="unknown key id"):
            await verifier.verify(token)


BROKEN = [
    Fault("jwks", "respond", status=503),
    Fault("jwks", "respond", status=200, body='{"keys":[{"kty":"RSA"}]}'),
    Fault("jwks", "respond", status=200, body='{"keys":[]}' + " " * 70_000),
    Fault("jwks", "hang"),
]


@pytest.mark.parametrize("fault", BROKEN, ids=range(len(BROKEN)))
async def test_a_broken_key_set_never_replaces_a_good_one(rig: Rig, fault: Fault) -> None:
    registry = Registry()
    async with rig.verifier(registry, timeout=0.2) as verifier:
        rig.fxa.faults.set(fault)
        for _ in range(5):
            rig.clock.now += 3600
            await verifier.keys.tick()
        assert (await verifier.verify(rig.jwt())).source == "local"
        assert metric(registry, "fxa_jwks_age_seconds") == 5 * 3600
        rig.fxa.faults.clear()
        rig.clock.now += 61
        await verifier.keys.tick()
        assert metric(registry, "fxa_jwks_age_seconds") == 0


async def test_a_key_set_that_cannot_be_fetched_again_is_kept_for_a_day_at_most(rig: Rig) -> None:
    registry = Registry()
    async with rig.verifier(registry) as verifier:
        rig.fxa.faults.set(Fault("jwks", "respond", status=500))
        rig.clock.now += 24 * 3600
        assert (await verifier.verify(rig.jwt())).source == "local"
        rig.clock.now += 1
        with pytest.raises(DependencyUnavailable):
            await verifier.verify(rig.jwt())
        with pytest.raises(CheckFailed):
            await verifier.ready()
        await verifier.keys.tick()
        assert metric(registry, "fxa_jwks_age_seconds") == -1
        rig.fxa.faults.clear()
        rig.clock.now += 61
        await verifier.keys.tick()
        assert (await verifier.verify(rig.jwt())).source == "local"


async def test_an_unknown_key_id_in_an_outage_is_not_called_invalid(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        rig.fxa.faults.set(Fault("jwks", "respond", status=500))
        for _ in range(3):
            rig.fxa.ring.rotate()
        token = rig.jwt()
        before = rig.calls("jwks")
        for _ in range(10):
            with pytest.raises(DependencyUnavailable) as caught:
                await verifier.verify(token)
            assert 1 <= (caught.value.retry_after or 0) <= 10
        assert rig.calls("jwks") == before + 1
        rig.fxa.faults.clear()
        rig.clock.now += 10
        assert (await verifier.verify(token)).source == "local"
        with pytest.raises(InvalidFxAToken, match="unknown key id"):
            await verifier.verify(rig.fxa.sign(rig.fxa.claims(TokenOrder(uid=UID)), {"kid": "unknown"}))
