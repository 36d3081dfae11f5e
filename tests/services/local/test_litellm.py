"""The real LiteLLM of a local run has the parts that the gateway needs: prices, visible streaming, true usage."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import pytest

from services.local import litellm
from services.local.litellm import LiteLLMServer

MODELS = {"openai/gpt-4o", "openai/gpt-4o-mini", "local/slow"}


@pytest.fixture
async def client(litellm_server: LiteLLMServer) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {litellm_server.master_key}"}
    async with aiohttp.ClientSession(litellm_server.url, headers=headers) as session:
        yield session


def ask(model: str, text: str, **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **options}


async def events(response: aiohttp.ClientResponse) -> list[tuple[float, Any]]:
    """Each event of a stream with the time of its arrival."""
    lines = [(monotonic(), line.decode().strip()) async for line in response.content]
    assert lines[-2][1] == "data: [DONE]"
    return [(at, json.loads(line.removeprefix("data: "))) for at, line in lines[:-2] if line]


async def test_every_model_has_prices_and_a_context_window(client: aiohttp.ClientSession) -> None:
    async with client.get("/model/info") as response:
        models = {row["model_name"]: row["model_info"] for row in (await response.json())["data"]}
    assert set(models) == MODELS
    for info in models.values():
        assert info["input_cost_per_token"] > 0
        assert info["output_cost_per_token"] > 0
        assert info["max_input_tokens"] > 0


async def test_the_slow_model_is_seen_streaming(client: aiohttp.ClientSession) -> None:
    body = ask("local/slow", "Write 10 words", stream=True, stream_options={"include_usage": True})
    async with client.post("/v1/chat/completions", json=body) as response:
        arrived = await events(response)
    words = [at for at, event in arrived if event["choices"] and event["choices"][0]["delta"].get("content")]
    assert len(words) == 10
    assert sum(later - earlier > 0.02 for earlier, later in pairwise(words)) >= 3, "all came at once"
    usage = arrived[-1][1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 10)
    assert usage["cost"] > 0


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_the_slow_model_keeps_to_the_completion_limit(client: aiohttp.ClientSession, limit: str) -> None:
    async with client.post("/v1/chat/completions", json=ask("local/slow", "Hi", **{limit: 4})) as response:
        answer = await response.json()
        assert float(response.headers["x-litellm-response-cost"]) > 0
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"] == "This answer was streamed"
    assert answer["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("model", ["openai/gpt-4o", "openai/gpt-4o-mini"])
async def test_a_mocked_answer_fits_into_the_smallest_grant(client: aiohttp.ClientSession, model: str) -> None:
    body = ask(model, "Hi", stream=True, stream_options={"include_usage": True})
    async with client.post("/v1/chat/completions", json=body) as response:
        arrived = await events(response)
    assert arrived[-1][1]["usage"]["completion_tokens"] <= 16


async def test_only_the_master_key_is_let_in(litellm_server: LiteLLMServer) -> None:
    async with (
        aiohttp.ClientSession(litellm_server.url, headers={"Authorization": "Bearer sk-guessed"}) as stranger,
        stranger.get("/model/info") as response,
    ):
        assert response.status in (400, 401)


def test_it_inherits_no_settings_of_ours(litellm_server: LiteLLMServer) -> None:
    environment = Path(f"/proc/{litellm_server.process.pid}/environ").read_bytes().split(b"\0")
    ours = {"LITELLM_MASTER_KEY", "PATH", "HOME"}
    assert {entry.split(b"=")[0].decode() for entry in environment} & set(os.environ) <= ours | {"LANG", "NO_COLOR"}


def test_an_installation_tells_how_far_it_has_come(tmp_path: Path) -> None:
    log = tmp_path / "log"
    seen = []
    for line in (
        "Looking in indexes",
        "Collecting a==1 (from x)",
        "Processing /b.whl",
        "Installing collected packages: a",
    ):
        with log.open("a") as file:
            file.write(f"{line}\n")
        seen.append(litellm.progress(log))
    assert seen[0] == "making its environment"
    assert [text.split(" of ")[0] for text in seen[1:3]] == ["fetching package 1", "fetching package 2"]
    assert seen[3].startswith("unpacking")
