"""The shipped configuration of LiteLLM keeps its promises to the gateways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import yaml  # type: ignore[import-untyped]

from services.local.litellm import LiteLLMServer
from tests.deploy.declarations import ROOT
from tests.support.waiting import until

CANARY = "canary-5c1e0b"


def _names(value: Any) -> Iterator[str]:
    """The names of all members, at any depth."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _names(item)


async def test_litellm_logs_each_call_under_the_id_that_its_answer_has(litellm_server: LiteLLMServer) -> None:
    """Nothing of the request is logged; the same file is loaded in production."""
    asked = {"model": "local/slow", "stream": True, "max_tokens": 20, "messages": [{"role": "user", "content": CANARY}]}
    answers: dict[str, tuple[int, str]] = {}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {litellm_server.master_key}"}) as session:
        for model in ("local/slow", "openai/nothing"):
            url = f"{litellm_server.url}/v1/chat/completions"
            async with session.post(url, json={**asked, "model": model}) as response:
                answers[response.headers["x-litellm-call-id"]] = response.status, await response.text()

    def lines() -> list[dict[str, Any]]:
        text = litellm_server.process.log.read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith('{"event": "litellm_call"')]

    await until(lambda: answers.keys() <= {line["litellm_call_id"] for line in lines()})
    (good, refused), written = answers, {line["litellm_call_id"]: line for line in lines()}
    line = written[good]
    assert (line["outcome"], line["model"], line["error"]) == ("success", "local/slow", "")
    assert line["response_id"] in answers[good][1]
    assert line["deployment"]
    assert 0 < line["seconds"] < 30
    assert (written[refused]["outcome"], written[refused]["error_code"]) == ("failure", str(answers[refused][0]))
    assert CANARY not in json.dumps([written[name] for name in answers])


def test_production_has_the_log_of_calls_that_is_tested() -> None:
    for path in ("deploy/litellm_config.yaml", "services/local/litellm.yaml"):
        given = yaml.safe_load((ROOT / path).read_text())["litellm_settings"]["callbacks"]
        assert given == ["litellm_call_log.log"]
    volumes = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["litellm"]["volumes"]
    assert "./services/local/litellm_call_log.py:/app/litellm_call_log.py:ro" in volumes


def test_no_other_model_answers_than_the_one_whose_price_is_reserved() -> None:
    names = set(_names(yaml.safe_load((ROOT / "deploy" / "litellm_config.yaml").read_text())))
    assert "model_list" in names
    assert not [name for name in names if "fallback" in name]
