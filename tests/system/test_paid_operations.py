"""Searches and embeddings on two gateways: exact totals."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from urllib.parse import quote

from tests.support.waiting import until
from tests.system.clients import Caller, Seen

TOOL = "exa-search"
MODEL = "small-embeddings"
#: The double's prices: a search is as dear as the row says, a token of input 1000 nano-dollars.
SEARCH_NANO, TOKEN_NANO = 5_000_000, 1000
#: What the double says that "Hi" did cost; at most it may cost 18 tokens: two bytes, and 16 for the item.
COST_NANO = 10 * TOKEN_NANO


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def search(caller: Caller, token: str, gateway: str) -> Seen:
    url = f"{caller.system.url(gateway)}/v1/search"
    return await caller.ask("POST", url, json={"query": "weather in Oslo"}, headers=bearer(token))


async def embed(caller: Caller, token: str, gateway: str) -> Seen:
    url = f"{caller.system.url(gateway)}/v1/embeddings"
    return await caller.ask("POST", url, json={"model": MODEL, "input": "Hi"}, headers=bearer(token))


async def rows(caller: Caller, user: str, number: int) -> list[dict[str, Any]]:
    """The rows of a user in the ledger, once there are so many."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        nonlocal found
        found = (await caller.admin("GET", f"/user/{quote(user, safe='')}/ledger")).json()["rows"]
        return len(found) >= number

    await until(there, 10, pause=0.1)
    return found


def cost(found: list[dict[str, Any]]) -> int:
    return sum(round(row["cost_usd"] * 10**9) for row in found)


async def test_searches_of_one_user_over_two_gateways_spend_the_budget_and_no_more(caller: Caller) -> None:
    """It is enough for four."""
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


async def test_embeddings_are_settled_by_their_tokens_to_the_last_nano_dollar(caller: Caller) -> None:
    """The budget is enough for nine requests, of which the last leaves 10,000 nano-dollars."""
    user, token = await caller.account(scope="vectors")
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
