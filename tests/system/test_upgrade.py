"""Two releases at once, as in any rollout: the one before and this one share stores, tokens, budgets and refusals."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.service_types import toml
from tests.system.clients import Caller, SeenStream
from tests.system.conftest import FULL
from tests.system.harness import ROOT, SERVICE_TYPES, System, running_system

#: The release that is deployed while this one rolls out: the revision to move with every release. MLPA_PREVIOUS names
#: a checkout of another.
PREVIOUS = "e86468d"
#: In nano-dollars: what a chat costs by LiteLLM's word, and the least that it has to reserve: a token for each byte of
#: "user" and "Hi" and 16 for the message, 16 tokens of an answer.
COST, LEAST = 25_000, 22 * 1000 + 16 * 2000
BUDGET = 2_000_000
SMALL = toml("small", max_budget=f"{BUDGET / 10**9:.9f}", duration="30d", rpm=0, tpm=0)
#: For tests to which all auths are alike.
BY_NEW_AUTH = pytest.mark.parametrize("caller", ["new auth"], indirect=True)


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of the release before. Skips where this tree has no history."""
    if given := os.environ.get("MLPA_PREVIOUS"):
        return Path(given).absolute()
    folder = tmp_path_factory.mktemp("previous")
    pack = ["git", "archive", "--output", str(folder / "tree.tar"), PREVIOUS]
    packed = subprocess.run(pack, cwd=ROOT, capture_output=True, text=True, check=False)
    if packed.returncode:
        pytest.skip(f"no revision {PREVIOUS} here: {packed.stderr.strip()}")
    subprocess.run(["tar", "-xf", "tree.tar"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, template: Path, previous: Path) -> Iterator[System]:
    """Two auths and two gateways on the newest schema; the first of each is of the release before."""
    folder = tmp_path_factory.mktemp("upgrade")
    # the release before knows no searches
    lines = [line for line in SERVICE_TYPES.splitlines(keepends=True) if not line.startswith("search_")]
    (folder / "types.toml").write_text("".join(lines) + SMALL)
    environment, old = {"SERVICE_TYPES": str(folder / "types.toml")}, ("auth-1", "gateway-1")
    options = {"auths": 2, "gateways": 2, "environment": environment, "trees": dict.fromkeys(old, previous)}
    with running_system(folder / "system", template, **options) as whole:
        for name in old:
            assert f"PYTHONPATH={previous}" in Path(f"/proc/{whole.parts[name].process.pid}/environ").read_text()
        yield whole


@pytest.fixture(params=["old auth", "new auth"])
async def caller(mixed: System, request: pytest.FixtureRequest) -> AsyncIterator[Caller]:
    mixed.auths = tuple(sorted(mixed.auths, reverse=request.param == "new auth"))
    async with Caller.open(mixed) as one:
        one.fxa_kind = "opaque"  # the release before refuses the JWTs of FxA, whose `typ` is `at+JWT`
        yield one


async def _until_all(caller: Caller, token: str, expected: set[tuple[int, str]]) -> float:
    """Seconds until every gateway answers a chat with one of these statuses and codes."""
    began = time.monotonic()
    seen: set[tuple[int, str]] = set()
    while time.monotonic() - began < 5:
        answers = await asyncio.gather(*(caller.chat(token, gateway=name) for name in caller.system.gateways))
        seen = {(answer.status, answer.code) for answer in answers}
        if seen <= expected:
            return time.monotonic() - began
        await asyncio.sleep(0.02)
    raise AssertionError(f"{seen} instead of {expected}")


async def test_either_credential_works_at_every_gateway(caller: Caller) -> None:
    _, of_account = await caller.account()
    device = await caller.enrolled()
    of_device = str((await caller.exchange_device(device)).json()["access_token"])
    for gateway in caller.system.gateways:
        for token in (of_account, of_device):
            assert (await caller.chat(token, gateway=gateway)).status == 200
            stream = await caller.stream(token, gateway=gateway)
            assert stream.done, stream


@BY_NEW_AUTH
async def test_both_auths_publish_the_same_keys(caller: Caller) -> None:
    urls = [f"{caller.system.url(name)}/.well-known/jwks.json" for name in caller.system.auths]
    old, new = [(await caller.ask("GET", url)).json() for url in urls]
    assert old == new


async def test_a_revoked_token_is_refused_at_every_gateway(caller: Caller) -> None:
    _, token = await caller.account()
    await _until_all(caller, token, {(200, "")})
    assert (await caller.ask("POST", f"{caller.system.auth_url}/revoke", data={"token": token})).status == 200
    assert await _until_all(caller, token, {(401, "invalid_token")}) < 1


async def test_a_blocked_user_is_refused_at_every_gateway_and_let_in_again(caller: Caller) -> None:
    user_id, token = await caller.account()
    await _until_all(caller, token, {(200, "")})
    assert (await caller.block(user_id)).status == 200
    assert await _until_all(caller, token, {(403, "user_blocked")}) < 1
    assert (await caller.block(user_id, undo=True)).status == 200
    assert await _until_all(caller, token, {(200, "")}) < 1


@BY_NEW_AUTH
async def test_both_gateways_spend_one_budget_to_its_exact_end(caller: Caller) -> None:
    user_id, token = await caller.account(scope="small")
    paid: list[str] = []

    async def spend(gateway: str) -> None:
        while True:
            request_id = uuid.uuid4().hex
            seen = await caller.chat(token, gateway=gateway, request_id=request_id)
            if seen.status == 200:
                paid.append(request_id)
            elif seen.code in ("budget_exceeded", "request_too_large"):  # the rest is too small for this one
                return
            else:
                assert seen.code == "budget_reserved", seen

    await asyncio.gather(*(spend(gateway) for gateway in caller.system.gateways for _ in range(5)))
    assert len(paid) == (BUDGET - LEAST) // COST + 1
    for gateway in caller.system.gateways:
        state = (await caller.budget(token, gateway)).json()
        assert (state["spent_usd"], state["reserved_usd"]) == (len(paid) * COST / 10**9, 0)
    rows: list[tuple[object, ...]] = []
    for _ in range(600):  # the old gateway's rows are written by the new one
        rows = caller.system.sql("select request_id, cost_nano from ledger where user_id = %(user)s", user=user_id)
        if len(rows) == len(paid):
            break
        await asyncio.sleep(0.05)
    assert sorted(rows) == sorted((request_id, COST) for request_id in paid)


@pytest.mark.skipif(not FULL, reason="a lease takes 30 s to end")
@BY_NEW_AUTH
async def test_one_release_finishes_what_the_other_left(caller: Caller) -> None:
    """Last of this system: its first gateway is killed."""
    event = 'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    await caller.script("slow", [("send", event), ("sleep", 60)])
    _, token = await caller.account()
    seen = SeenStream(uuid.uuid4().hex)
    stream = asyncio.create_task(caller.stream(token, seen, model="slow", gateway="gateway-1"))
    for _ in range(100):
        if seen.events:
            break
        await asyncio.sleep(0.05)
    caller.system.parts["gateway-1"].kill()
    await stream
    rows: list[tuple[object, ...]] = []
    for _ in range(400):
        if rows := caller.system.sql("select outcome from ledger where request_id = %(id)s", id=seen.request_id):
            break
        await asyncio.sleep(0.1)
    assert rows == [("expired",)]
