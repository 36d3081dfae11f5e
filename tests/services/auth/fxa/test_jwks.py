"""FxA's key set: its usable keys, the times of its fetches, and the effects of outages and rotations."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.jwks import parse_key_set
from services.auth.fxa.services import FxAVerifier
from services.local.faults import Fault
from services.local.fxa import SigningKey, TokenOrder
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


def test_the_first_key_of_an_id_counts(fxa_keys: list[SigningKey]) -> None:
    first, second = fxa_keys[0].public(), {**fxa_keys[1].public(), "kid": fxa_keys[0].kid}
    keys = parse_key_set(key_set(first, second))
    assert keys[first["kid"]].to_dict()["n"] == first["n"]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"keys":null}', b'{"keys":[]}', b'{"keys":[1,null]}', b"<html>", b"\xff", b"[" * 60_000],
    ids=range(9),
)
def test_what_is_no_key_set_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        parse_key_set(body)


def test_a_set_of_too_many_keys_is_refused(fxa_keys: list[SigningKey]) -> None:
    key = fxa_keys[0].public()
    with pytest.raises(ValueError):
        parse_key_set(key_set(*({**key, "kid": str(number)} for number in range(33))))


jwk_values = st.none() | st.integers() | st.text() | st.sampled_from(["RSA", "RS256", "sig", "AQAB", "AAAA" * 80])


@settings(deadline=None)
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


async def test_the_first_token_waits_for_the_first_key_set(rig: Rig) -> None:
    rig.fxa.faults.set(Fault("jwks", latency=0.05))
    async with rig.verifier(loaded=False) as verifier:
        assert (await verifier.verify(rig.jwt())).uid == UID
    assert rig.calls("jwks") == 1


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


async def test_a_key_that_is_used_at_once_is_found_by_asking_again(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        for _ in range(3):
            rig.fxa.ring.rotate()
        identities = await asyncio.gather(*(verifier.verify(rig.jwt()) for _ in range(50)))
        assert {identity.source for identity in identities} == {"local"}


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
    Fault("jwks", "respond", status=404),
    Fault("jwks", "respond", status=429, headers={"Retry-After": "7"}),
    Fault("jwks", "respond", status=302, headers={"Location": "/elsewhere"}),
    Fault("jwks", "respond", status=200, body='{"keys":[]}'),
    Fault("jwks", "respond", status=200, body='{"keys":[{"kty":"RSA"}]}'),
    Fault("jwks", "respond", status=200, body="<html>"),
    Fault("jwks", "respond", status=200, body='{"keys":[]}' + " " * 70_000),
    Fault("jwks", "reset"),
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


async def test_a_key_used_at_once_is_found_ten_seconds_after_another_unknown_one(rig: Rig) -> None:
    claims = rig.fxa.claims(TokenOrder(uid=UID))
    async with rig.verifier() as verifier:
        with pytest.raises(InvalidFxAToken):
            await verifier.verify(rig.fxa.sign(claims, {"kid": "unknown"}))
        for _ in range(3):
            rig.fxa.ring.rotate()
        rig.clock.now += 10
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


async def test_fxa_is_not_asked_for_keys_again_before_it_wants_to_be(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        token = rig.fxa.sign(rig.fxa.claims(TokenOrder(uid=UID)), {"kid": "unknown"})
        rig.fxa.faults.set(Fault("jwks", "respond", status=429, headers={"Retry-After": "200"}))
        before = rig.calls("jwks")
        for _ in range(19):
            with pytest.raises(DependencyUnavailable):
                await verifier.verify(token)
            rig.clock.now += 10
            await verifier.keys.tick()
        assert rig.calls("jwks") == before + 1
        rig.fxa.faults.clear()
        rig.clock.now += 10
        await verifier.keys.tick()
        assert rig.calls("jwks") == before + 2


async def test_without_any_key_set_a_jwt_is_unavailable_until_there_is_one(rig: Rig) -> None:
    rig.fxa.faults.set(Fault("jwks", "respond", status=500))
    async with rig.verifier() as verifier:
        for _ in range(20):
            with pytest.raises(DependencyUnavailable):
                await verifier.verify(rig.jwt())
        failed = rig.calls("jwks")
        assert failed == 1
        rig.fxa.faults.clear()
        rig.clock.now += 1
        await verifier.keys.tick()
        assert (await verifier.verify(rig.jwt())).source == "local"


async def test_fetches_without_success_come_less_and_less_often(rig: Rig) -> None:
    rig.fxa.faults.set(Fault("jwks", "respond", status=500))
    async with rig.verifier() as verifier:
        for _ in range(600):
            rig.clock.now += 1
            await verifier.keys.tick()
        assert 10 <= rig.calls("jwks") <= 17


async def test_one_who_stops_waiting_does_not_stop_the_fetch(rig: Rig) -> None:
    rig.fxa.faults.set(Fault("jwks", latency=0.2))
    kid = rig.fxa.ring.signing.kid
    async with rig.verifier(loaded=False) as verifier:
        waiters = [asyncio.create_task(verifier.keys.get(kid)) for _ in range(3)]
        await rig.until_called("jwks")
        waiters[0].cancel()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert not any(isinstance(result, BaseException) for result in results[1:])
    assert rig.calls("jwks") == 1
