"""The double of LiteLLM beside the real one: its answers have the members of LiteLLM's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.clients.conftest import EMBEDDINGS, GPT, TOOL, Providers
from tests.doubles.litellm import LiteLLMDouble, Script, error_body
from tests.system.harness import System

HI = [{"role": "user", "content": "Hi"}]
#: What only some providers give.
OPTIONAL = {"system_fingerprint", "service_tier", "completion_tokens_details", "prompt_tokens_details"}


class Asker:
    """The same requests to both."""

    def __init__(self, session: aiohttp.ClientSession, double: LiteLLMDouble, system: System) -> None:
        self._session = session
        self._double = (double.url, "double", "any key")
        self._real = (system.environment["LITELLM_API_BASE"], GPT, system.environment["MLPA_VIRTUAL_KEY"])

    async def both(self, method: str, path: str, **body: Any) -> list[tuple[int, dict[str, str], bytes]]:
        return [await self._ask(*one, method, path, body) for one in (self._real, self._double)]

    async def _ask(
        self, url: str, model: str, key: str, method: str, path: str, body: dict[str, Any]
    ) -> tuple[int, dict[str, str], bytes]:
        given = {"model": model, **body} if body else None
        headers = {"Authorization": f"Bearer {key}"}
        async with self._session.request(method, url + path, json=given, headers=headers) as response:
            return (
                response.status,
                {name.lower(): value for name, value in response.headers.items()},
                await response.read(),
            )


@pytest.fixture
async def asker(system: System, token: str, providers: Providers) -> AsyncIterator[Asker]:
    async with LiteLLMDouble() as double, aiohttp.ClientSession() as session:
        double.script(
            "nobody", Script.json(error_body("Invalid model name passed in", "invalid_request_error", "400"), 400)
        )
        yield Asker(session, double, system)


def shape(value: Any) -> Any:
    """The members of a JSON value, and the kinds of their values."""
    if isinstance(value, dict):
        return {name: shape(held) for name, held in value.items() if name not in OPTIONAL}
    if isinstance(value, list):
        return [shape(held) for held in value[:1]]
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


async def test_an_answer(asker: Asker) -> None:
    real, double = await asker.both("POST", "/v1/chat/completions", messages=HI)
    assert shape(json.loads(double[2])) == shape(json.loads(real[2]))
    for name in ("x-litellm-call-id", "x-litellm-model-id", "x-litellm-response-cost"):
        assert name in real[1]
        assert name in double[1]


async def test_a_stream(asker: Asker) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    real, double = await asker.both("POST", "/v1/chat/completions", messages=HI, **options)
    shapes = []
    for _, headers, body in (real, double):
        assert headers["content-type"].startswith("text/event-stream")
        assert "x-litellm-response-cost" not in headers
        *events, done, rest = body.split(b"\n\n", body.count(b"\n\n"))
        assert (done, rest.strip()) == (b"data: [DONE]", b"")
        chunks = [shape(json.loads(event.removeprefix(b"data: "))) for event in events]
        shapes.append((chunks[0], chunks[1], chunks[-2], chunks[-1]))
    assert shapes[1] == shapes[0]


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings(asker: Asker, encoding: str) -> None:
    real, double = await asker.both(
        "POST", "/v1/embeddings", model=EMBEDDINGS, input=["a", "b"], encoding_format=encoding
    )
    assert shape(json.loads(double[2])) == shape(json.loads(real[2]))
    assert "x-litellm-response-cost" in real[1]


async def test_a_search(asker: Asker) -> None:
    real, double = await asker.both("POST", f"/v1/search/{TOOL}", query="weather", max_results=1)
    assert shape(json.loads(double[2])) == shape(json.loads(real[2]))
    assert (double[1]["x-litellm-response-cost"], real[1]["x-litellm-response-cost"]) == ("0.005", "0.005")


async def test_an_error(asker: Asker) -> None:
    real, double = await asker.both("POST", "/v1/chat/completions", messages=HI, model="nobody")
    assert double[0] == real[0] == 400
    theirs = json.loads(real[2])["error"]
    theirs.pop("provider_specific_fields", None)
    assert shape(json.loads(double[2])["error"]) == shape(theirs)


async def test_liveliness(asker: Asker) -> None:
    real, double = await asker.both("GET", "/health/liveliness")
    assert (double[0], json.loads(double[2])) == (real[0], json.loads(real[2]))


async def test_a_row_of_model_info_has_nothing_that_litellms_has_not(asker: Asker) -> None:
    real, double = await asker.both("GET", "/model/info")
    theirs = next(row for row in json.loads(real[2])["data"] if row["model_name"] == GPT)
    ours = json.loads(double[2])["data"][0]
    assert ours.keys() <= theirs.keys()
    for name in ("litellm_params", "model_info"):
        assert ours[name].keys() <= theirs[name].keys()
