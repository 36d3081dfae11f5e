"""Searches and embeddings on two gateways: exact totals, and nothing forgotten when a gateway dies."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.doubles.litellm import embeddings
from tests.support.service_types import toml
from tests.support.waiting import until
from tests.system.clients import Caller, Seen
from tests.system.harness import System, running_system

TOOL = "exa-search"
AT = f"/v1/search/{TOOL}"
MODEL = "small-embeddings"
#: The double's prices: a search is as dear as the row says, a token of input 1000 nano-dollars.
SEARCH_NANO, TOKEN_NANO = 5_000_000, 1000
#: What "Hi" may cost at most (two bytes, and 16 for the item) and what the double says that it did cost.
BOUND_NANO, COST_NANO = 18 * TOKEN_NANO, 10 * TOKEN_NANO
#: Four searches and no more; nine requests for embeddings, of which the last leaves 10,000 nano-dollars.
TYPES = toml("search", max_budget="0.02", search_tool=TOOL, search_cost="0.005", rpm=1000) + toml(
    "vectors", max_budget="0.0001", rpm=1000
)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("paid")
    table = folder / "types.toml"
    table.write_text(TYPES)
    environment = {"SERVICE_TYPES": str(table), "MODEL_INFO_SECONDS": "1"}
    with running_system(folder / "system", template, gateways=2, environment=environment) as whole:
        yield whole


@pytest.fixture
async def vectors(caller: Caller) -> tuple[str, str]:
    """``(user id, access token)`` of a user of embeddings, once both gateways know the model."""
    answer = json.dumps(embeddings(prompt=10))
    await caller.script(MODEL, [("send", answer)], info={"mode": "embedding", "output_cost": 0})
    user, token = await caller.account(scope="vectors")

    async def known() -> bool:
        lists = [
            await caller.ask("GET", f"{caller.system.url(name)}/v1/models", headers=bearer(token))
            for name in caller.system.gateways
        ]
        return all(MODEL.encode() in seen.body for seen in lists)

    await until(known, 20, pause=0.1)
    return user, token


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def search(caller: Caller, token: str, gateway: str) -> Seen:
    url = f"{caller.system.url(gateway)}/v1/search"
    return await caller.ask("POST", url, json={"query": "weather in Oslo"}, headers=bearer(token))


async def embed(caller: Caller, token: str, gateway: str) -> Seen:
    url = f"{caller.system.url(gateway)}/v1/embeddings"
    return await caller.ask("POST", url, json={"model": MODEL, "input": "Hi"}, headers=bearer(token))


async def rows(caller: Caller, user: str, number: int, seconds: float = 10) -> list[dict[str, Any]]:
    """The rows of a user in the ledger, once there are so many."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        nonlocal found
        found = (await caller.admin("GET", f"/user/{quote(user, safe='')}/ledger")).json()["rows"]
        return len(found) >= number

    await until(there, seconds, pause=0.1)
    return found


def cost(found: list[dict[str, Any]]) -> int:
    return sum(round(row["cost_usd"] * 10**9) for row in found)


async def test_searches_of_one_user_over_two_gateways_spend_the_budget_and_no_more(caller: Caller) -> None:
    user, token = await caller.account(scope="search")
    gateways = caller.system.gateways
    seen = await asyncio.gather(*(search(caller, token, gateways[number % 2]) for number in range(30)))
    statuses = Counter((one.status, one.code) for one in seen)
    assert statuses[200, ""] == 4
    assert statuses.keys() <= {(200, ""), (429, "budget_reserved"), (429, "budget_exceeded")}
    found = await rows(caller, user, 4)
    assert {(row["model"], row["outcome"], row["prompt_tokens"], row["completion_tokens"]) for row in found} == {
        (TOOL, "success", 0, 0)
    }
    assert (len(found), cost(found)) == (4, 4 * SEARCH_NANO)
    state = (await caller.budget(token)).json()
    assert (state["spent_usd"], state["reserved_usd"], state["remaining_usd"]) == (0.02, 0, 0)
    again = await search(caller, token, gateways[1])
    assert (again.status, again.code, again.headers["x-should-retry"]) == (429, "budget_exceeded", "false")


async def test_embeddings_are_settled_by_their_tokens_to_the_last_nano_dollar(
    caller: Caller, vectors: tuple[str, str]
) -> None:
    user, token = vectors
    for number in range(9):
        assert (await embed(caller, token, caller.system.gateways[number % 2])).status == 200
        await rows(caller, user, number + 1)
    seen = await embed(caller, token, caller.system.gateways[0])
    assert (seen.status, seen.code) == (413, "request_too_large")
    found = await rows(caller, user, 9)
    assert {(row["model"], row["prompt_tokens"], row["completion_tokens"]) for row in found} == {(MODEL, 10, 0)}
    assert (len(found), cost(found)) == (9, 9 * COST_NANO)
    state = (await caller.budget(token)).json()
    assert (state["spent_usd"], state["reserved_usd"]) == (9 * COST_NANO / 10**9, 0)


async def test_what_a_killed_gateway_had_open_is_charged_whole(caller: Caller, vectors: tuple[str, str]) -> None:
    searcher, token = await caller.account(scope="search")
    _, doomed = caller.system.gateways
    for scripted in (AT, MODEL):
        await caller.script(scripted, [("hang", None)])
    asking = [
        asyncio.create_task(search(caller, token, doomed)),
        asyncio.create_task(embed(caller, vectors[1], doomed)),
    ]

    async def reserved() -> bool:
        budgets = [(await caller.budget(one)).json()["reserved_usd"] for one in (token, vectors[1])]
        return budgets == [SEARCH_NANO / 10**9, BOUND_NANO / 10**9]

    await until(reserved, 10, pause=0.05)
    caller.system.parts[doomed].kill()
    assert [one.status for one in await asyncio.gather(*asking)] == [0, 0]
    for user, expected in ((searcher, SEARCH_NANO), (vectors[0], BOUND_NANO)):
        [row] = await rows(caller, user, 1, seconds=45)
        assert (row["outcome"], cost([row])) == ("expired", expected)
    for one, expected in ((token, SEARCH_NANO), (vectors[1], BOUND_NANO)):
        state = (await caller.budget(one)).json()
        assert (state["spent_usd"], state["reserved_usd"]) == (expected / 10**9, 0)
