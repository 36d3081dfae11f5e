"""Assertions over the body of one request, as gateways exchange them for Firefox for iOS."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from services.auth.appattest.assertion import Assertion
from services.auth.appattest.auth_data import Launch
from services.auth.appattest.errors import AppAttestError
from services.auth.devices import storage
from services.auth.errors import InvalidSubjectToken
from services.auth.exchange.credentials import app_attest_request
from services.cli.client import ASSERTION, GRANT_TYPE
from services.local.device import Device
from shared.domain import tokens
from shared.domain.identity import Credential
from shared.stores.postgres import Database, Query
from tests.services.auth.conftest import BUNDLE, Auth, StartAuth

KEY = "the-secret-of-the-gateways-0123456789"
OLD_KEY = "the-secret-before-that-0123456789abc"
TYPE = Credential.APP_ATTEST_REQUEST.subject_token_type
BODY = b'{"messages":[],"model":"m","stream":true,"tools":[]}'


@pytest.fixture
async def auth(start_auth: StartAuth) -> Auth:
    return await start_auth(
        firefox_clients=True,
        exchange_key=f"{KEY},{OLD_KEY}",
        exchange_limit_per_source=0,
        exchange_limit_per_identity=0,
        challenge_limit_per_source=0,
    )


async def subject(auth: Auth, device: Device, body: bytes = BODY, **changes: Any) -> str:
    """A subject token as the gateway makes it from a request, its members changed at will."""
    challenge = changes.pop("challenge", None) or await auth.challenge(device)
    members = {
        "key_id_b64": device.key_id_b64,
        "challenge_b64": base64.b64encode(challenge.encode()).decode(),
        "assertion_obj_b64": base64.b64encode(device.assert_(body)).decode(),
        "bundle_id": device.bundle_id,
        "body_sha256": hashlib.sha256(body).hexdigest(),
        **changes,
    }
    return base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()


async def exchange(auth: Auth, token: str, scope: str = "s2s", **headers: str) -> tuple[int, Any]:
    form = {"grant_type": GRANT_TYPE, "subject_token": token, "subject_token_type": TYPE, "scope": scope}
    sent = headers or {tokens.EXCHANGE_KEY_HEADER: KEY}
    status, body, _ = await auth.ask("POST", "/token", data=form, headers=sent)
    return status, body


async def test_a_gateway_gets_a_token_of_a_minute_for_one_body(auth: Auth) -> None:
    device = await auth.enrolled()
    status, body = await exchange(auth, await subject(auth, device))
    assert (status, body["expires_in"], body["scope"]) == (200, 60, "s2s")
    claims = tokens.claims_of(body["access_token"])
    assert (claims.sub, claims.amr, claims.client_id) == (f"{device.key_id_b64}:s2s", ("app_attest_request",), BUNDLE)
    assert claims.body_sha256 == hashlib.sha256(BODY).hexdigest()
    assert claims.exp - claims.iat == 60


async def test_the_key_before_the_newest_is_good_too(auth: Auth) -> None:
    device = await auth.enrolled()
    status, _ = await exchange(auth, await subject(auth, device), **{tokens.EXCHANGE_KEY_HEADER: OLD_KEY})
    assert status == 200


async def test_nobody_but_a_gateway_can_exchange_one(auth: Auth) -> None:
    device = await auth.enrolled()
    for key in [None, "", "wrong", KEY[:-1], KEY + "x", f"{KEY},{OLD_KEY}"]:
        token = await subject(auth, device)
        headers = {"X-Other": "1"} if key is None else {tokens.EXCHANGE_KEY_HEADER: key}
        status, body = await exchange(auth, token, **headers)
        assert (status, body["error"]) == (400, "invalid_request"), key
        assert (await exchange(auth, token))[0] == 200, "nothing was used up"


async def test_without_the_setting_there_are_no_gateways(start_auth: StartAuth) -> None:
    auth = await start_auth(exchange_key=KEY)
    device = await auth.enrolled()
    status, body = await exchange(auth, await subject(auth, device))
    assert (status, body["error"]) == (400, "invalid_request")


async def test_a_row_has_to_name_the_kind(start_auth: StartAuth, tmp_path: Path) -> None:
    table = tmp_path / "types.toml"
    table.write_text(
        '[[service_type]]\nname = "s2s"\nmax_budget = "0.10"\nduration = "1d"\nrpm = 1\ntpm = 1\nmodels = ["*"]\n'
        'credentials = ["app_attest"]\n'
    )
    auth = await start_auth(service_types=table, firefox_clients=True, exchange_key=KEY)
    device = await auth.enrolled()
    status, body = await exchange(auth, await subject(auth, device))
    assert (status, body["error"]) == (400, "invalid_scope")


async def test_what_does_not_fit_together_is_refused_and_uses_nothing_up(auth: Auth) -> None:
    device = await auth.enrolled()
    for changes in [
        {"body_sha256": hashlib.sha256(b"another body").hexdigest()},
        {"body_sha256": hashlib.sha256(BODY).hexdigest().upper()},
        {"body_sha256": "0" * 63},
        {"body_sha256": None},
        {"challenge_b64": "AAAA"},
        {"challenge_b64": base64.b64encode(b"\xff" * 64).decode()},
        {"challenge_b64": base64.b64encode(b"0" * 64).decode()},
        {"challenge_b64": "!"},
        {"bundle_id": "org.example.other"},
        {"assertion_obj_b64": "AAAA"},
        {"key_id_b64": "short"},
    ]:
        challenge = await auth.challenge(device)
        status, body = await exchange(auth, await subject(auth, device, challenge=challenge, **changes))
        assert (status, body["error"]) == (400, "invalid_request"), changes
        assert (await exchange(auth, await subject(auth, device, challenge=challenge)))[0] == 200, changes


async def test_another_keys_challenge_and_a_used_one_are_refused(auth: Auth) -> None:
    device, other = await auth.enrolled(), await auth.enrolled()
    stolen = await auth.challenge(other)
    assert (await exchange(auth, await subject(auth, device, challenge=stolen)))[0] == 400
    challenge = await auth.challenge(device)
    assert (await exchange(auth, await subject(auth, device, challenge=challenge)))[0] == 200
    assert (await exchange(auth, await subject(auth, device, challenge=challenge)))[0] == 400


async def test_an_assertion_is_good_once_even_with_a_fresh_challenge(auth: Auth) -> None:
    """The challenge is not signed, so a thief could fetch another one."""
    device = await auth.enrolled()
    assertion = base64.b64encode(device.assert_(BODY)).decode()
    assert (await exchange(auth, await subject(auth, device, assertion_obj_b64=assertion)))[0] == 200
    assert (await exchange(auth, await subject(auth, device, assertion_obj_b64=assertion)))[0] == 400


async def test_the_two_kinds_of_assertion_are_not_taken_for_each_other(auth: Auth) -> None:
    device = await auth.enrolled()
    status, body = await exchange(auth, await auth.assertion(device, scope="s2s"))
    assert (status, body["error"]) == (400, "invalid_request")
    status, body = await auth.exchange(await subject(auth, device), ASSERTION, "s2s")
    assert (status, body["error"]) == (400, "invalid_request")


async def test_parallel_requests_of_a_device_all_succeed_in_any_order_and_each_once(auth: Auth) -> None:
    device = await auth.enrolled()
    sent = [await subject(auth, device) for _ in range(20)]
    twice = [*sent, *sent]
    random.Random(7).shuffle(twice)
    answers = await asyncio.gather(*(exchange(auth, token) for token in twice))
    assert Counter(status for status, _ in answers) == {200: 20, 400: 20}
    assert len({body["access_token"] for status, body in answers if status == 200}) == 20


async def at(auth: Auth, device: Device, counter: int) -> int:
    """The status of an exchange with an assertion of this counter."""
    device.counter = counter - 1
    return (await exchange(auth, await subject(auth, device)))[0]


async def test_a_counter_may_be_63_below_the_highest_and_no_more(auth: Auth) -> None:
    device = await auth.enrolled()
    statuses = {counter: await at(auth, device, counter) for counter in (102, 36, 37, 38, 39, 40)}
    assert statuses == {102: 200, 36: 400, 37: 400, 38: 400, 39: 200, 40: 200}


async def test_the_other_kind_stays_strictly_increasing_and_both_share_the_counters(auth: Auth) -> None:
    device = await auth.enrolled()
    device.counter = 9
    assert (await exchange(auth, await subject(auth, device)))[0] == 200  # 10
    device.counter = 4
    assert (await auth.exchange_device(device))[0] == 400  # 5 is lower
    device.counter = 11
    assert (await auth.exchange_device(device))[0] == 200  # 12
    for counter, status in ((5, 200), (10, 400), (11, 200), (12, 400), (11, 400)):
        assert await at(auth, device, counter) == status, counter


_INSERT = Query.text("insert into devices (key_id, public_key, counter) values (:key_id, '\\x04', :counter)")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, 2**32 - 300),
    steps=st.lists(st.tuples(st.integers(0, 200) | st.integers(0, 2**32 - 1), st.booleans()), max_size=20),
)
def test_counters_are_taken_as_a_plain_model_says(postgres_url: str, start: int, steps: list[tuple[int, bool]]) -> None:
    async def run() -> None:
        key_id = uuid.uuid4().hex
        highest, taken = start, set(range(max(0, start - 64), start + 1))
        async with Database.connect(postgres_url) as database:
            await database.execute(_INSERT, key_id=key_id, counter=start)
            for step, strict in steps:
                counter = min(2**32 - 1, max(0, start - 70) + step if step <= 200 else step)
                window = 0 if strict else storage.LATE_COUNTERS
                good = counter > highest or (counter > highest - window and counter not in taken)
                assertion = Assertion(counter, "org.example", Launch())
                taking = await storage.advance_counter(database, key_id, assertion, "development", window=window)
                assert taking == good, (counter, highest, strict)
                if good:
                    taken.add(counter)
                    highest = max(highest, counter)

    asyncio.run(run())


@given(st.text())
def test_no_text_makes_the_parser_fail_otherwise_than_by_refusing(text: str) -> None:
    for token in (text, base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()):
        with pytest.raises((InvalidSubjectToken, AppAttestError)):
            app_attest_request.read(token)


async def test_limits_per_source_count_the_client_that_a_gateway_names(start_auth: StartAuth) -> None:
    auth = await start_auth(firefox_clients=True, exchange_key=KEY, exchange_limit_per_source=3)
    token = auth.fxa_token()

    async def ask(**headers: str) -> int:
        form = {
            "grant_type": GRANT_TYPE,
            "subject_token": token,
            "subject_token_type": Credential.FXA.subject_token_type,
            "scope": "ai",
        }
        status, _, _ = await auth.ask("POST", "/token", data=form, headers=headers)
        return int(status)

    for client in ("192.0.2.1", "192.0.2.2", "2001:db8::1"):
        known = {tokens.EXCHANGE_KEY_HEADER: KEY, tokens.CLIENT_HEADER: client}
        assert [await ask(**known) for _ in range(4)] == [200, 200, 200, 429], client
    assert [await ask(**{tokens.CLIENT_HEADER: f"198.51.100.{number}"}) for number in range(4)] == [200, 200, 200, 429]
    for name in ("", "somebody", "fe80::1%eth0"):  # of no use, so the peer counts
        assert await ask(**{tokens.EXCHANGE_KEY_HEADER: KEY, tokens.CLIENT_HEADER: name}) == 429
