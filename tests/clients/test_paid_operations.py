"""Embeddings with OpenAI's client, and searches, through the real LiteLLM: what arrives, and its cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import openai
import pytest

from tests.clients.conftest import EMBEDDINGS, GPT, TOOL, Providers, wait_for_models
from tests.doubles.providers import behaviour, exa
from tests.doubles.providers.openai import VECTOR
from tests.support.waiting import until
from tests.system.clients import Caller

#: LiteLLM's price of EMBEDDINGS, in nano-dollars per token.
TOKEN_NANO = 20


@pytest.fixture
async def account(caller: Caller) -> tuple[str, str]:
    """``(user id, access token)``"""
    user, token = await caller.account()
    await wait_for_models(caller, token)
    return user, token


@pytest.fixture
async def client(caller: Caller, account: tuple[str, str]) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{caller.system.gateway_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=account[1], max_retries=0) as client:
        yield client


async def row_of(caller: Caller, user: str) -> dict[str, Any]:
    """The only row of a user in the ledger."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        nonlocal found
        found = (await caller.admin("GET", f"/user/{quote(user, safe='')}/ledger")).json()["rows"]
        return bool(found)

    await until(there, 10, pause=0.1)
    [row] = found
    return row


@pytest.mark.parametrize("given", ["a text", ["a text", "another"], [1, 2, 3], [[1, 2], [3]]])
@pytest.mark.parametrize("encoding", [None, "float"])
async def test_the_official_client_gets_embeddings(
    caller: Caller,
    account: tuple[str, str],
    client: openai.AsyncOpenAI,
    providers: Providers,
    given: Any,
    encoding: Any,
) -> None:
    options = {"encoding_format": encoding} if encoding else {}
    got = await client.embeddings.create(model=EMBEDDINGS, input=given, dimensions=4, **options)
    items = 2 if isinstance(given, list) and not isinstance(given[0], int) else 1
    assert [list(one.embedding) for one in got.data] == [VECTOR] * items
    arrived = providers.openai.last.body
    assert (arrived["model"], arrived["input"], arrived["dimensions"]) == ("text-embedding-3-small", given, 4)
    assert "user" not in arrived, "a person's id stays at home"
    row = await row_of(caller, account[0])
    tokens = items * behaviour.PROMPT_TOKENS
    assert (row["model"], row["prompt_tokens"], row["completion_tokens"]) == (EMBEDDINGS, tokens, 0)
    assert round(row["cost_usd"] * 10**9) == tokens * TOKEN_NANO


async def test_the_official_client_gets_the_errors_of_embeddings(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model=GPT, input="a")
    assert caught.value.code == "invalid_model"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=EMBEDDINGS, messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.code == "invalid_model"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="nonsense").embeddings.create(model=EMBEDDINGS, input="a")


async def test_a_search_goes_through_litellm_to_its_provider(
    caller: Caller, account: tuple[str, str], providers: Providers
) -> None:
    user, token = account
    url = f"{caller.system.gateway_url}/v1/search"
    headers = {"Authorization": f"Bearer {token}"}
    seen = await caller.ask("POST", url, json={"query": "weather in Oslo", "max_results": 2}, headers=headers)
    assert seen.status == 200, seen.body
    first, second = seen.json()["results"]
    assert (first["title"], first["url"], first["snippet"]) == (
        "Page 0",
        "https://example.org/0",
        "About weather in Oslo",
    )
    assert first["publishedDate"] == first["date"] == exa.PUBLISHED
    assert second.get("publishedDate") is second.get("date") is None
    arrived = providers.exa.last.body
    assert (arrived["query"], arrived["numResults"]) == ("weather in Oslo", 2)
    assert user.partition(":")[0] not in str(arrived), "a person's id stays at home"
    row = await row_of(caller, user)
    assert (row["model"], row["prompt_tokens"], row["completion_tokens"], row["cost_usd"]) == (TOOL, 0, 0, 0.005)
