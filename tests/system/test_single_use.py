"""Single use: nothing meant for one key, service type, deployment and time can be used otherwise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from services.auth.challenge.services import Challenges
from services.cli.client import ASSERTION
from services.local.device import Device
from shared.stores.redis import connect
from tests.system.clients import Caller
from tests.system.credentials import sign
from tests.system.harness import SECRETS, System


@pytest.fixture
async def device(caller: Caller) -> Device:
    """An enrolled one."""
    made = caller.device()
    assert (await caller.enrol(made)).status == 201
    return made


@pytest.fixture
def forge(system: System) -> Callable[..., str]:
    """A challenge as auth would make it: ``age`` seconds ago, or with another deployment's secret."""

    def make(device: Device, *, age: float = 0, secret: str = SECRETS["CHALLENGE_SECRET"]) -> str:
        redis = connect(system.environment["REDIS_URL"])
        return Challenges([secret.encode()], lifetime=300, redis=redis, clock=lambda: time.time() - age).issue(
            device.key_id_b64
        )

    return make


async def _challenge(caller: Caller, device: Device) -> str:
    return str((await caller.challenge(device)).json()["challenge"])


async def test_an_assertion_is_good_once(caller: Caller, device: Device) -> None:
    subject = caller.assertion(device, await _challenge(caller, device))
    assert (await caller.exchange(subject, ASSERTION)).status == 200
    again = await caller.exchange(subject, ASSERTION)
    assert (again.status, again.code) == (400, "invalid_request")


async def test_of_many_uses_of_an_assertion_at_once_one_succeeds(caller: Caller, device: Device) -> None:
    subject = caller.assertion(device, await _challenge(caller, device))
    seen = await asyncio.gather(*(caller.exchange(subject, ASSERTION) for _ in range(20)))
    assert sorted(one.status for one in seen) == [200] + [400] * 19


async def test_a_challenge_enrols_once(caller: Caller) -> None:
    device = caller.device()
    challenge = await _challenge(caller, device)
    seen = await asyncio.gather(*(caller.attest(device, challenge) for _ in range(10)))
    assert sorted(one.status for one in seen) == [201] + [401] * 9


async def test_a_challenge_that_enrolled_signs_no_exchange(caller: Caller) -> None:
    device = caller.device()
    challenge = await _challenge(caller, device)
    assert (await caller.attest(device, challenge)).status == 201
    assert (await caller.exchange(caller.assertion(device, challenge), ASSERTION)).status == 400


async def test_a_second_assertion_over_the_same_challenge_is_refused(caller: Caller, device: Device) -> None:
    challenge = await _challenge(caller, device)
    assert (await caller.exchange(caller.assertion(device, challenge), ASSERTION)).status == 200
    assert (await caller.exchange(caller.assertion(device, challenge), ASSERTION)).status == 400


async def test_a_challenge_of_another_key_is_refused(caller: Caller, device: Device) -> None:
    stranger = caller.device()
    challenge = await _challenge(caller, stranger)
    assert (await caller.exchange(caller.assertion(device, challenge), ASSERTION)).status == 400
    assert (await caller.attest(device, challenge)).status == 401


async def test_an_assertion_for_one_service_type_is_refused_for_another(caller: Caller, device: Device) -> None:
    subject = caller.assertion(device, await _challenge(caller, device), "ai")
    assert (await caller.exchange(subject, ASSERTION, "s2s")).status == 400


@pytest.mark.parametrize("changed", [{"aud": "https://elsewhere.example"}, {"typ": "webauthn.get"}])
async def test_an_assertion_meant_for_elsewhere_is_refused(
    caller: Caller, device: Device, changed: dict[str, str]
) -> None:
    subject = caller.assertion(device, await _challenge(caller, device), "ai", **changed)
    assert (await caller.exchange(subject, ASSERTION)).status == 400


async def test_a_challenge_of_another_deployment_is_refused(
    caller: Caller, device: Device, forge: Callable[..., str]
) -> None:
    challenge = forge(device, secret="the secret of elsewhere")
    assert (await caller.exchange(caller.assertion(device, challenge), ASSERTION)).status == 400
    assert (await caller.attest(device, challenge)).status == 401


async def test_a_challenge_is_good_until_its_time_and_not_after(
    caller: Caller, device: Device, forge: Callable[..., str]
) -> None:
    assert (await caller.exchange(caller.assertion(device, forge(device, age=290)), ASSERTION)).status == 200
    late = forge(device, age=301)
    assert (await caller.exchange(caller.assertion(device, late), ASSERTION)).status == 400
    assert (await caller.attest(device, late)).status == 401


async def test_an_older_assertion_is_refused_after_a_newer_one(caller: Caller, device: Device) -> None:
    older = caller.assertion(device, await _challenge(caller, device))
    newer = caller.assertion(device, await _challenge(caller, device))
    assert (await caller.exchange(newer, ASSERTION)).status == 200
    assert (await caller.exchange(older, ASSERTION)).status == 400


async def test_an_fxa_token_is_refused_where_its_scopes_or_its_issuer_are_wrong(caller: Caller) -> None:
    seen = await caller.exchange(await caller.fxa_token(scopes=["profile:email"]))
    assert (seen.status, seen.code) == (400, "invalid_scope")
    expired = await caller.exchange(await caller.fxa_token(ttl=-60))
    assert (expired.status, expired.code) == (400, "invalid_request")


async def test_our_own_access_token_is_no_fxa_token(caller: Caller, system: System) -> None:
    seen = await caller.exchange(sign(system))
    assert (seen.status, seen.code) == (400, "invalid_request")


async def test_a_token_stands_for_its_own_user_and_service_type_alone(caller: Caller, system: System) -> None:
    (_, mine), (theirs_id, theirs) = await caller.account(), await caller.account()
    assert (await caller.chat(mine)).status == 200
    assert (await caller.budget(theirs)).json()["spent_usd"] == 0
    uid = theirs_id.partition(":")[0]
    changed: list[dict[str, Any]] = [{"sub": f"{uid}:s2s"}, {"scope": "s2s"}, {"scope": "ai s2s"}, {"sub": uid}]
    for changes in changed:
        assert (await caller.chat(sign(system, **changes))).status == 401
