"""Opaque tokens: the meaning of each of FxA's answers, and outages."""

from __future__ import annotations

import asyncio
import json
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given, strategies as st

from services.auth.fxa.errors import InvalidFxAToken
from services.auth.fxa.places import FEW_PLACES, MANY_REFUSED
from services.auth.fxa.remote import _identity
from services.local.faults import Fault
from shared.errors import DependencyUnavailable
from shared.service.fetch import Answer, NoAnswer
from shared.telemetry.metrics import Registry
from tests.services.auth.fxa.harness import UID, Rig
from tests.support.exposition import metric

TOKEN = "f" * 64
GOOD = {"user": UID, "client_id": "5882386c6d801776", "scope": ["profile:uid"]}


def respond(status: int, body: Any = None, **headers: str) -> Fault:
    text = body if isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault("verify", "respond", status=status, body=text, headers=named)


def refusal(errno: Any, status: int = 400) -> Fault:
    return respond(status, {"code": status, "errno": errno, "error": "Bad Request", "message": "no"})


async def test_a_token_of_fxa_is_verified(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        identity = await verifier.verify(rig.opaque(scopes=("profile", "a:b"), client_id="abc"))
    assert (identity.uid, identity.client_id, identity.scopes) == (UID, "abc", ("profile", "a:b"))
    assert (identity.expires_at, identity.source) == (None, "remote")


@pytest.mark.parametrize("errno", [108, 109, 115])
async def test_fxas_refusals_are_refusals(rig: Rig, errno: int) -> None:
    rig.fxa.faults.set(refusal(errno))
    async with rig.verifier() as verifier:
        with pytest.raises(InvalidFxAToken) as caught:
            await verifier.verify(TOKEN)
    assert caught.value.source == "remote"


@pytest.mark.parametrize("user", [UID.upper(), UID + "\n", f"{UID}:ai", ""])
async def test_a_uid_that_is_none_is_refused(rig: Rig, user: str) -> None:
    rig.fxa.faults.set(respond(200, {**GOOD, "user": user}))
    async with rig.verifier() as verifier:
        with pytest.raises(InvalidFxAToken):
            await verifier.verify(TOKEN)


async def test_a_token_that_fxa_does_not_know_or_that_expired_is_refused(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        with pytest.raises(InvalidFxAToken, match="unknown"):
            await verifier.verify(TOKEN)
        token = rig.opaque(ttl=10)
        rig.clock.now += 10.5
        with pytest.raises(InvalidFxAToken, match="expired"):
            await verifier.verify(token)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "<html>sign in</html>"),
        (200, "{"),
        (200, ""),
        (200, {}),
        (200, []),
        (200, {**GOOD, "user": None}),
        (200, {**GOOD, "client_id": 5}),
        (200, {**GOOD, "scope": "profile"}),
        (200, {**GOOD, "scope": ["a b"]}),
        (200, {**GOOD, "scope": ["a"] * 257}),
        (200, "[" * 50_000),
        (200, '{"x":' + "[" * 50_000),
        (201, GOOD),
        (401, {"code": 401, "errno": 108}),
        (404, {"code": 404, "errno": 108}),
        (500, {"code": 500, "errno": 108}),
        (400, "<html>"),
        (400, {"errno": "108", "code": 400}),
        (400, [108]),
        (400, {"code": 400, "errno": 110}),
        (400, {"code": 400, "errno": 201}),
    ],
)
def test_any_other_answer_is_none(status: int, body: Any) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(NoAnswer):
        _identity(Answer(status, {}, text.encode()), 0)


@pytest.mark.parametrize(
    "fault", [respond(503, Retry_After="9"), respond(200, "{"), Fault("verify", "reset"), Fault("verify", "hang")]
)
async def test_no_answer_says_nothing_of_the_token_and_is_forgotten(rig: Rig, fault: Fault) -> None:
    rig.fxa.faults.set(fault)
    token = rig.opaque()
    async with rig.verifier(timeout=0.15) as verifier:
        with pytest.raises(DependencyUnavailable) as caught:
            await verifier.verify(token)
        assert caught.value.dependency == "fxa"
        assert caught.value.status == 503
        assert int(caught.value.headers["Retry-After"]) >= 1
        rig.fxa.faults.clear()
        rig.clock.now += 600
        assert (await verifier.verify(token)).source == "remote"


async def test_fxa_that_is_gone_is_unavailable(rig: Rig, unused_port: int) -> None:
    async with rig.verifier(base_url=f"http://127.0.0.1:{unused_port}/v1") as verifier:
        with pytest.raises(DependencyUnavailable):
            await verifier.verify(TOKEN)


async def test_a_connection_that_fxa_closed_while_idle_costs_no_user_anything(rig: Rig) -> None:
    rig.fxa.faults.set(Fault("verify", "reset", times=1))
    async with rig.verifier() as verifier:
        assert (await verifier.verify(rig.opaque())).source == "remote"


async def test_an_outage_opens_the_breaker_and_its_end_closes_it(rig: Rig) -> None:
    registry = Registry()
    async with rig.verifier(registry) as verifier:
        rig.fxa.faults.set(respond(500))
        for number in range(20):
            with pytest.raises(DependencyUnavailable):
                await verifier.verify(f"{number:064x}")
        assert rig.calls("verify") == 5
        assert metric(registry, "fxa_breaker_state") == 2
        assert metric(registry, "fxa_verify_not_sent_total", reason="open") == 15
        assert metric(registry, "fxa_request_failures_total", endpoint="verify", reason="status") == 5
        assert (await verifier.verify(rig.jwt())).source == "local"

        rig.clock.now += 5
        with pytest.raises(DependencyUnavailable):
            await verifier.verify(TOKEN)
        assert rig.calls("verify") == 6

        rig.fxa.faults.clear()
        rig.clock.now += 10
        assert (await verifier.verify(rig.opaque())).source == "remote"
        assert metric(registry, "fxa_breaker_state") == 0


async def test_refusals_are_no_outage(rig: Rig) -> None:
    registry = Registry()
    async with rig.verifier(registry) as verifier:
        for number in range(20):
            with pytest.raises(InvalidFxAToken):
                await verifier.verify(f"{number:064x}")
        assert metric(registry, "fxa_breaker_state") == 0


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_fxa_is_not_asked_again_before_it_wants_to_be(rig: Rig, form: str) -> None:
    wait = "90" if form == "seconds" else formatdate(rig.clock() + 90, usegmt=True)
    async with rig.verifier() as verifier:
        rig.fxa.faults.set(respond(503, Retry_After=wait))
        with pytest.raises(DependencyUnavailable) as caught:
            await verifier.verify(TOKEN)
        assert caught.value.headers["Retry-After"] == "90"
        rig.fxa.faults.clear()
        rig.clock.now += 50
        with pytest.raises(DependencyUnavailable) as caught:
            await verifier.verify(rig.opaque())
        assert caught.value.headers["Retry-After"] == "40"
        assert rig.calls("verify") == 1
        rig.clock.now += 40
        assert (await verifier.verify(rig.opaque())).source == "remote"


async def test_junk_takes_no_more_places_than_there_are(rig: Rig) -> None:
    registry = Registry()
    rig.fxa.faults.set(Fault("verify", latency=0.5))
    async with rig.verifier(registry, max_concurrency=4, queue_wait=0.05) as verifier:
        outcomes = await asyncio.gather(
            *(verifier.verify(f"{number:064x}") for number in range(40)), return_exceptions=True
        )
    assert rig.fxa.faults.most_at_once["verify"] == 4
    assert rig.calls("verify") == 4
    assert sum(isinstance(outcome, InvalidFxAToken) for outcome in outcomes) == 4
    assert sum(isinstance(outcome, DependencyUnavailable) for outcome in outcomes) == 36
    assert metric(registry, "fxa_verify_not_sent_total", reason="busy") == 36
    assert metric(registry, "fxa_breaker_state") == 0


async def test_invented_tokens_of_one_source_starve_no_other(rig: Rig) -> None:
    registry = Registry()
    rig.fxa.faults.set(Fault("verify", latency=0.3))
    async with rig.verifier(registry) as verifier:
        invented = [asyncio.create_task(verifier.verify(f"{number:064x}", "attacker")) for number in range(90)]
        await rig.until_called("verify")
        good = [verifier.verify(rig.opaque(uid=f"{number:032x}"), f"user {number}") for number in range(16)]
        identities = await asyncio.gather(*good)
        outcomes = await asyncio.gather(*invented, return_exceptions=True)
    assert [identity.source for identity in identities] == ["remote"] * 16
    assert rig.fxa.faults.most_at_once["verify"] <= 8 + 16  # of 32 places
    assert sum(isinstance(outcome, InvalidFxAToken) for outcome in outcomes) >= 8
    assert all(isinstance(outcome, InvalidFxAToken | DependencyUnavailable) for outcome in outcomes)
    assert metric(registry, "fxa_breaker_state") == 0


async def test_a_429_halves_the_places_and_stops_nobody(rig: Rig) -> None:
    registry = Registry()
    async with rig.verifier(registry) as verifier:
        assert metric(registry, "fxa_places") == 32
        rig.fxa.faults.set(respond(429, Retry_After="90"))
        with pytest.raises(DependencyUnavailable) as caught:
            await verifier.verify(TOKEN)
        assert caught.value.headers["Retry-After"] == "90"
        assert metric(registry, "fxa_places") == 16
        assert metric(registry, "fxa_request_failures_total", endpoint="verify", reason="rate_limited") == 1
        rig.fxa.faults.clear()
        assert (await verifier.verify(rig.opaque())).source == "remote"
        assert metric(registry, "fxa_places") == 17
        for number in range(20):
            await verifier.verify(rig.opaque(uid=f"{number:032x}"))
        assert metric(registry, "fxa_places") == 32
        assert metric(registry, "fxa_breaker_state") == 0


async def test_many_429s_at_once_halve_once_and_many_in_a_row_stop_it(rig: Rig) -> None:
    registry = Registry()
    rig.fxa.faults.set(Fault("verify", "respond", status=429, latency=0.2, headers={"Retry-After": "90"}))
    async with rig.verifier(registry) as verifier:
        for places in (16, 8, 4, 2, 1):
            tokens = [verifier.verify(f"{places:032x}{number:032x}", str(number)) for number in range(places)]
            outcomes = await asyncio.gather(*tokens, return_exceptions=True)
            assert all(isinstance(outcome, DependencyUnavailable) for outcome in outcomes)
            assert metric(registry, "fxa_places") == places
        assert metric(registry, "fxa_breaker_state") == 0
        with pytest.raises(DependencyUnavailable):
            await verifier.verify(TOKEN)
        assert metric(registry, "fxa_breaker_state") == 2, "nothing is left to halve"
        rig.fxa.faults.clear()
        rig.clock.now += 89
        with pytest.raises(DependencyUnavailable):
            await verifier.verify(rig.opaque())
        rig.clock.now += 1
        assert (await verifier.verify(rig.opaque())).source == "remote"


async def test_a_source_of_many_refused_tokens_has_few_places_left_and_its_good_ones_are_verified(rig: Rig) -> None:
    async with rig.verifier() as verifier:
        for number in range(MANY_REFUSED):
            with pytest.raises(InvalidFxAToken):
                await verifier.verify(f"{number:064x}", "office")
        rig.fxa.faults.most_at_once["verify"] = 0
        rig.fxa.faults.set(Fault("verify", latency=0.1))
        good = [verifier.verify(rig.opaque(uid=f"{number:032x}"), "office") for number in range(4)]
        assert [identity.source for identity in await asyncio.gather(*good)] == ["remote"] * 4
        assert rig.fxa.faults.most_at_once["verify"] == FEW_PLACES


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
bodies = st.binary() | st.fixed_dictionaries(
    {}, optional={name: json_values | st.just(value) for name, value in [*GOOD.items(), ("code", 400), ("errno", 108)]}
).map(lambda body: json.dumps(body).encode())


@given(st.sampled_from([200, 400]) | st.integers(200, 428), bodies)
def test_no_answer_makes_it_fail_otherwise(status: int, body: bytes) -> None:
    try:
        identity = _identity(Answer(status, {}, body), 0)
    except InvalidFxAToken:
        assert status == 400
    except NoAnswer:
        return
    else:
        assert status == 200
        assert identity.uid == UID
