"""The limits of exchanges per source and identity, and the clients that they must not hit."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import quote, urlencode

from services.auth.limits.services import source
from services.cli.client import ACCESS_TOKEN, GRANT_TYPE
from services.local.faults import Fault
from shared.stores.redis import Client
from tests.services.auth.conftest import UID, Auth, StartAuth, many
from tests.support.service_types import toml

_TYPE = "application/x-www-form-urlencoded"
_OTHER = "f" * 32


async def exchange(auth: Auth, subject: str, forwarded: str) -> tuple[int, Any, Any]:
    form = {"grant_type": GRANT_TYPE, "subject_token": subject, "subject_token_type": ACCESS_TOKEN, "scope": "ai"}
    headers = {"Content-Type": _TYPE, "X-Forwarded-For": forwarded}
    return await auth.ask("POST", "/token", data=urlencode(form), headers=headers)


async def test_an_identity_is_limited_wherever_it_asks_from(start_auth: StartAuth) -> None:
    auth = await start_auth(exchange_limit_per_identity=2, trusted_proxies=1)
    statuses = [(await exchange(auth, auth.fxa_token(), f"192.0.2.{number}"))[0] for number in range(3)]
    assert statuses == [200, 200, 429]
    _, body, headers = await exchange(auth, auth.fxa_token(), "192.0.2.9")
    assert body["error"] == "slow_down"
    assert 1 <= int(headers["Retry-After"]) <= 120
    assert (await exchange(auth, auth.fxa_token(uid=_OTHER), "192.0.2.9"))[0] == 200


async def test_bad_credentials_in_somebodys_name_do_not_use_up_that_ones_limit(start_auth: StartAuth) -> None:
    auth = await start_auth(exchange_limit_per_identity=1)
    for _ in range(3):
        assert (await auth.exchange(auth.fxa_token(ttl=-60)))[0] == 400
        assert (await auth.exchange(auth.fxa_token(scopes=("openid",))))[0] == 400
    assert (await auth.exchange(auth.fxa_token()))[0] == 200


async def test_good_and_bad_credentials_of_a_source_have_windows_of_their_own(start_auth: StartAuth) -> None:
    auth = await start_auth(exchange_limit_per_source=3)
    assert [(await auth.exchange("junk"))[0] for _ in range(4)] == [400, 400, 400, 429]
    good = [(await auth.exchange(auth.fxa_token(uid=f"{number:032x}")))[0] for number in range(4)]
    assert good == [200, 200, 200, 429]


async def test_garbage_locks_no_good_credential_of_its_source_out(start_auth: StartAuth) -> None:
    """Fifty at a time, of every kind of garbage, and good credentials among and after them."""
    auth = await start_auth(exchange_limit_per_source=120)
    device = await auth.enrolled()
    junk = ["x", "a.b.c", auth.fxa_token(ttl=-60), "f" * 64, auth.fxa_token(scopes=("openid",))]
    places = asyncio.Semaphore(50)

    async def one(number: int) -> int:
        async with places:
            if number % 10:
                return (await auth.exchange(junk[number % len(junk)]))[0]
            return (await auth.exchange(auth.fxa_token(uid=f"{number:032x}")))[0]

    began = time.monotonic()
    statuses = await many(200, one)
    regained = 1 + int(2 * (time.monotonic() - began))  # at 120 a minute, where the run meets the end of one
    assert [statuses[number] for number in range(0, 200, 10)] == [200] * 20
    assert statuses.count(400) + statuses.count(429) == 180
    assert 120 <= statuses.count(400) <= 120 + regained
    assert (await auth.exchange(auth.fxa_token()))[0] == 200
    assert (await auth.exchange_device(device))[0] == 200
    assert (await auth.exchange("x"))[0] == 429


async def test_a_malformed_form_is_a_failure_too_and_says_when_to_come_back(start_auth: StartAuth) -> None:
    auth = await start_auth(exchange_limit_per_source=2)
    answers = [await auth.ask("POST", "/token", data=b"x") for _ in range(3)]
    assert [status for status, _, _ in answers] == [400, 400, 429]
    _, body, headers = answers[-1]
    assert body["error"] == "slow_down"
    assert 1 <= int(headers["Retry-After"]) <= 120
    assert (await auth.exchange(auth.fxa_token()))[0] == 200


async def test_an_outage_is_no_failure_of_the_source(start_auth: StartAuth) -> None:
    auth = await start_auth(exchange_limit_per_source=2)
    auth.fxa.faults.set(Fault("verify", "respond", status=500, body=""))
    statuses = [(await auth.exchange(auth.fxa_token(kind="opaque")))[0] for _ in range(4)]
    assert statuses == [503] * 4
    assert [(await auth.exchange("x"))[0] for _ in range(3)] == [400, 400, 429]


async def test_behind_a_proxy_a_source_is_whoever_can_send_from_that_address(
    start_auth: StartAuth, redis: Client
) -> None:
    for first, second, status in [
        ("6.6.6.6, 192.0.2.1", "7.7.7.7, 192.0.2.1", 429),
        ("192.0.2.1:1000", "192.0.2.1:2000", 429),
        ("[2001:db8::1]:1000", "[2001:db8::1]:2000", 429),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", 429),
        ("::ffff:192.0.2.1", "192.0.2.1", 429),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", 400),
        ("192.0.2.1", "192.0.2.2", 400),
    ]:
        await redis.flushall()
        auth = await start_auth(exchange_limit_per_source=1, trusted_proxies=1)  # which remembers who is over
        assert (await exchange(auth, "junk", first))[0] == 400, first
        assert (await exchange(auth, "junk", second))[0] == status, first


async def test_without_trusted_proxies_nobody_chooses_its_source(start_auth: StartAuth) -> None:
    auth = await start_auth(exchange_limit_per_source=1)
    assert (await exchange(auth, "junk", "192.0.2.1"))[0] == 400
    assert (await exchange(auth, "junk", "192.0.2.2"))[0] == 429


def test_what_is_no_address_is_its_own_source() -> None:
    assert [source(text) for text in ("unknown", "", "a:b:c")] == ["unknown", "", "a:b:c"]


async def test_deleting_a_user_frees_its_place(start_auth: StartAuth, tmp_path: Any) -> None:
    table = tmp_path / "types.toml"
    table.write_text(toml(max_users=1))
    auth = await start_auth(service_types=table, mlpa_admin_key="admin-key")
    assert (await auth.exchange(auth.fxa_token()))[0] == 200
    status, body = await auth.exchange(auth.fxa_token(uid=_OTHER))
    assert (status, body["error"]) == (403, "max_users_reached")
    assert (await auth.exchange(auth.fxa_token()))[0] == 200, "who is in stays in"
    headers = {"Authorization": "Bearer admin-key"}
    assert (await auth.ask("DELETE", f"/user/{quote(UID + ':ai', safe='')}", headers=headers))[0] == 204
    assert (await auth.exchange(auth.fxa_token(uid=_OTHER)))[0] == 200
    assert (await auth.exchange(auth.fxa_token()))[0] == 403, "its place is taken now"
