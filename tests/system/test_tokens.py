"""Keys that are replaced under load, and rights that are taken away, at every gateway and on every route."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from jose import jwt

from services.auth.tokens.issuer import Issuer
from services.auth.tokens.key_ring import KeyRing, create_key
from tests.support.waiting import until
from tests.system.clients import Caller, SeenStream
from tests.system.credentials import revoke_device, sign_in

#: How long a stream may last without its right, and what a busy machine may add, in seconds.
LIMIT, SLACK = 10.0, 2.0
_PIECE = 'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
_LONG: list[tuple[str, Any]] = [("send", _PIECE), ("sleep", 0.1)] * 300


async def everywhere(caller: Caller, token: str) -> set[tuple[int, str]]:
    """Status and code of each route at each gateway."""
    bearer = {"Authorization": f"Bearer {token}"}
    asked = []
    for gateway in caller.system.gateways:
        asked += [caller.chat(token, gateway=gateway), caller.budget(token, gateway)]
        asked.append(caller.ask("GET", f"{caller.system.url(gateway)}/v1/models", headers=bearer))
    return {(seen.status, seen.code) for seen in await asyncio.gather(*asked)}


async def revoke(caller: Caller, token: str) -> int:
    return (await caller.ask("POST", f"{caller.system.auth_url}/revoke", data={"token": token})).status


async def a_device(caller: Caller) -> tuple[Any, str]:
    device = await caller.enrolled()
    return device, str((await caller.exchange_device(device)).json()["access_token"])


async def test_a_block_is_refused_everywhere_as_soon_as_it_is_answered(caller: Caller) -> None:
    user, token = await caller.account()
    assert await everywhere(caller, token) == {(200, "")}
    assert (await caller.block(user)).status == 200
    assert await everywhere(caller, token) == {(403, "user_blocked")}
    assert (await caller.block(user, undo=True)).status == 200
    assert await everywhere(caller, token) == {(200, "")}


async def test_a_revoked_token_is_refused_everywhere_and_the_users_other_token_is_not(caller: Caller) -> None:
    user, token = await caller.account()
    _, other = await caller.account(user.partition(":")[0])
    assert await everywhere(caller, token) == {(200, "")}
    assert await revoke(caller, token) == 200
    assert await everywhere(caller, token) == {(401, "invalid_token")}
    assert await everywhere(caller, other) == {(200, "")}


async def test_a_revoked_device_is_refused_everywhere_and_for_good(caller: Caller) -> None:
    device, token = await a_device(caller)
    assert await everywhere(caller, token) == {(200, "")}
    await revoke_device(caller, device.key_id_b64, await sign_in(caller, "MLPA_ADMIN_KEY"))
    assert await everywhere(caller, token) == {(403, "user_blocked")}
    assert (await caller.exchange_device(device)).code == "access_denied"
    assert (await caller.block(f"{device.key_id_b64}:ai", undo=True)).status == 200
    assert await everywhere(caller, token) == {(403, "user_blocked")}, "unblocking lifts no revocation"
    assert (await caller.enrol(device)).code == "access_denied"


async def test_an_open_stream_ends_with_the_right_to_it(caller: Caller) -> None:
    await caller.script("slow", _LONG)
    (user, blocked), (_, revoked), (device, of_device) = await asyncio.gather(
        caller.account(), caller.account(), a_device(caller)
    )
    session = await sign_in(caller, "MLPA_ADMIN_KEY")
    streams = [SeenStream(f"stream-{number}") for number in range(3)]
    tasks = [
        asyncio.create_task(caller.stream(token, seen, model="slow", gateway=gateway))
        for token, seen, gateway in zip(
            (blocked, revoked, of_device), streams, (*caller.system.gateways, caller.system.gateways[0]), strict=True
        )
    ]
    await until(lambda: all(seen.events for seen in streams), 20)
    assert (await caller.block(user)).status == 200
    assert await revoke(caller, revoked) == 200
    await revoke_device(caller, device.key_id_b64, session)
    decided = time.monotonic()
    await asyncio.wait(tasks, timeout=2 * LIMIT)
    assert time.monotonic() - decided <= LIMIT + SLACK
    assert [seen.error for seen in streams] == ["user_blocked", "invalid_token", "user_blocked"]
    assert not any(seen.done for seen in streams)


async def test_a_rotation_under_load_loses_no_request(caller: Caller) -> None:
    """The next key is published at once, and signs some seconds later, while tokens are made and used all the time."""
    system, folder = caller.system, caller.system.folder / "keys"
    failed: list[str] = []
    after = 0

    async def work() -> None:
        nonlocal after
        while after < 10 and not failed:
            seen = await caller.exchange(await caller.fxa_token())
            token = str(seen.json().get("access_token", "")) if seen.status == 200 else ""
            answers = [seen, *await asyncio.gather(*(caller.budget(token, name) for name in system.gateways))]
            failed.extend(str(answer) for answer in answers if answer.status != 200)
            after += bool(token) and jwt.get_unverified_header(token)["kid"] == following
            await asyncio.sleep(0.05)

    path = create_key(folder, activate_at=time.time() + 6)
    ring = KeyRing(folder, clock=lambda: time.time() + 10)
    following = ring.signing_key().kid
    assert ring.signing_key().path == path
    # auth looks for a key that it does not know when it meets a token of it
    signed = Issuer(ring, issuer=system.issuer, ttl=300).issue(
        user_id=f"{'a' * 32}:ai", client_id="x", scope="ai", amr="fxa"
    )
    assert await revoke(caller, signed) == 200
    async with asyncio.timeout(60):
        await asyncio.gather(*(work() for _ in range(2)))
    assert not failed
    jwks = (await caller.ask("GET", f"{system.auth_url}/.well-known/jwks.json")).json()
    assert len(jwks["keys"]) == 2
