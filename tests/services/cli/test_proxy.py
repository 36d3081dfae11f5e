"""``mlpa device proxy``: the gateway for tools with a static key, and for nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import openai
import pytest

from services.cli.client import Client, RequestFailed
from services.cli.proxy import Proxy, serve
from tests.services.gateway.firefox.conftest import Door, door, double, pki, start_auth, start_door

__all__ = ["door", "double", "pki", "start_auth", "start_door"]

KEY = "a key that does not change"
MESSAGES = [{"role": "user", "content": "Hi"}]


@asynccontextmanager
async def proxied(door: Door) -> AsyncIterator[tuple[str, list[str]]]:
    """The base URL, and the tokens that were exchanged."""
    device, tokens = await door.device(), []
    async with Client.open(auth_url=door.auth.url, gateway_url=door.url) as client:

        async def exchange() -> str:
            tokens.append(await client.exchange_device(device, "s2s"))
            return tokens[-1]

        proxy = Proxy(door.url, KEY, exchange)
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(proxy, 0, started.set_result))
        try:
            yield await started, tokens
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_openais_sdk_streams_with_a_static_key(door: Door) -> None:
    async with proxied(door) as (url, tokens), openai.AsyncOpenAI(base_url=url, api_key=KEY) as sdk:
        stream = await sdk.chat.completions.create(model="gpt", messages=MESSAGES, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]) == "Hello"
        assert [model.id async for model in sdk.models.list()]
        with pytest.raises(openai.BadRequestError) as refused:
            await sdk.chat.completions.create(model="no such model", messages=MESSAGES)
        assert refused.value.code == "invalid_model"
        assert len(tokens) == 1  # one for all


async def test_many_at_once_share_one_exchange_and_a_revoked_token_is_replaced(door: Door) -> None:
    async with proxied(door) as (url, tokens), openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as sdk:
        await asyncio.gather(*(sdk.models.list() for _ in range(8)))
        assert len(tokens) == 1
        async with aiohttp.ClientSession() as session:
            await session.post(f"{door.auth.url}/revoke", data={"token": tokens[0]})
        with pytest.raises(openai.AuthenticationError):
            await sdk.chat.completions.create(model="gpt", messages=MESSAGES)
        assert (await sdk.chat.completions.create(model="gpt", messages=MESSAGES)).choices
        assert len(tokens) == 2


@pytest.mark.parametrize("key", ["another", "", "ä"])
async def test_without_the_key_nothing_is_asked(door: Door, key: str) -> None:
    async with proxied(door) as (url, tokens), aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with session.post(f"{url}/chat/completions", headers=headers, json={}) as response:
            assert response.status == 401
            assert (await response.json())["error"]["code"] == "invalid_api_key"
        assert tokens == []


async def test_a_gateway_or_auth_that_is_away_is_said(unused_port: int) -> None:
    async def refused() -> str:
        raise RequestFailed("POST /token: 403 access_denied")

    for exchange, said in ((refused, "access_denied"), (_unsigned, "Cannot connect")):
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        proxy = Proxy(f"http://127.0.0.1:{unused_port}", KEY, exchange)
        task = asyncio.create_task(serve(proxy, 0, started.set_result))
        async with openai.AsyncOpenAI(base_url=await started, api_key=KEY, max_retries=0) as sdk:
            with pytest.raises(openai.InternalServerError, match=said):
                await sdk.models.list()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _unsigned() -> str:
    """A token that is good until 2100."""
    return "eyJhbGciOiJub25lIn0.eyJleHAiOjQxMDI0NDQ4MDB9."
