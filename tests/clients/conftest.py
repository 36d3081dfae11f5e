"""A whole system with the real LiteLLM, and providers' doubles behind that: for clients that others wrote.

LiteLLM has the settings of the shipped configuration; only its models differ, since they point at the doubles.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from services.local import litellm
from services.local.litellm import LiteLLMServer
from services.local.process import free_port
from tests.doubles.providers.anthropic import AnthropicDouble
from tests.doubles.providers.bedrock import BedrockDouble
from tests.doubles.providers.exa import ExaDouble
from tests.doubles.providers.gemini import GeminiDouble
from tests.doubles.providers.openai import OpenAIDouble
from tests.doubles.providers.server import ProviderDouble
from tests.support.waiting import until
from tests.system.clients import Caller
from tests.system.harness import ROOT, System, make_template, running_system

SHIPPED = ROOT / "deploy" / "litellm_config.yaml"
#: What the shipped configuration finds beside itself.
CALL_LOG = ROOT / "services" / "local" / "litellm_call_log.py"

GPT, GPT5, DEEPSEEK = "openai/gpt-4o", "openai/gpt-5", "deepseek/deepseek-reasoner"
CLAUDE, GEMINI, GEMINI3 = "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash", "gemini/gemini-3-flash-preview"
BEDROCK, NOVA = "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock/amazon.nova-lite-v1:0"
EMBEDDINGS, TOOL = "openai/text-embedding-3-small", "exa-search"
MODELS = (GPT, GPT5, DEEPSEEK, CLAUDE, GEMINI, GEMINI3, BEDROCK, NOVA)


@dataclass(frozen=True)
class Providers:
    openai: OpenAIDouble
    anthropic: AnthropicDouble
    gemini: GeminiDouble
    bedrock: BedrockDouble
    exa: ExaDouble

    def of(self, model: str) -> ProviderDouble:
        """The provider of a model."""
        name = model.partition("/")[0]
        found = {"deepseek": self.openai}.get(name) or getattr(self, name)
        assert isinstance(found, ProviderDouble)
        return found

    def forget(self) -> None:
        for double in (self.openai, self.anthropic, self.gemini, self.bedrock, self.exa):
            double.arrived.clear()


@pytest.fixture(scope="package")
def all_providers() -> Iterator[Providers]:
    with ExitStack() as stack:
        made = (OpenAIDouble(), AnthropicDouble(), GeminiDouble(), BedrockDouble(), ExaDouble())
        yield Providers(*(stack.enter_context(double.running()) for double in made))


@pytest.fixture
def providers(all_providers: Providers) -> Providers:
    """The providers; nothing has arrived at them yet."""
    all_providers.forget()
    return all_providers


def litellm_config(providers: Providers) -> dict[str, Any]:
    shipped = yaml.safe_load(SHIPPED.read_text())
    settings = {name: value for name, value in shipped["litellm_settings"].items() if not name.startswith("cache")}
    bedrock = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "aws_region_name": "us-east-1"}
    # What the shipped configuration sets for each of its models beside the model and the way to it
    common = {
        name: value
        for name, value in shipped["model_list"][0]["litellm_params"].items()
        if name != "model" and not name.startswith("vertex_")
    }

    def row(model: str) -> dict[str, Any]:
        way = bedrock if model.startswith("bedrock/") else {"api_key": "none"}
        given = {"model": model, "api_base": providers.of(model).url, **way, **common}
        return {"model_name": model, "litellm_params": given}

    return {
        "model_list": [row(model) for model in (*MODELS, EMBEDDINGS)],
        "search_tools": [
            {
                "search_tool_name": TOOL,
                "litellm_params": {"search_provider": "exa_ai", "api_key": "none", "api_base": providers.exa.url},
            }
        ],
        "litellm_settings": settings,
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }


@pytest.fixture(scope="package")
def system(all_providers: Providers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system on the real LiteLLM. The two start at the same time."""
    folder = tmp_path_factory.mktemp("clients")
    config = folder / "litellm.yaml"
    config.write_text(json.dumps(litellm_config(all_providers)))
    shutil.copy(CALL_LOG, folder)
    venv = litellm.environment(folder)
    litellm.install(venv)
    port, key = free_port(), f"sk-{secrets.token_hex(24)}"
    server = LiteLLMServer(folder / "litellm", port, master_key=key, venv=venv, config=config)
    environment = {
        "LITELLM_API_BASE": server.url,
        "MLPA_VIRTUAL_KEY": key,
        "MODEL_INFO_SECONDS": "1",
        "TOTAL_TIMEOUT_SECONDS": "120",
    }
    with ExitStack() as stack:
        server.initialise()
        server.process.start()
        stack.callback(server.stop)
        whole = running_system(folder / "system", make_template(folder), environment=environment)
        started = stack.enter_context(whole)
        server.process.wait_ready(server.ready, timeout=server.ready_seconds)
        yield started


@pytest.fixture
async def caller(system: System) -> AsyncIterator[Caller]:
    async with Caller.open(system) as one:
        yield one


@pytest.fixture
async def token(caller: Caller) -> str:
    """An access token of a new account, once the gateway knows the models."""
    _, token = await caller.account()
    await wait_for_models(caller, token)
    return token


async def wait_for_models(caller: Caller, token: str) -> None:
    """The gateway reads the models when LiteLLM answers, which starts at the same time."""

    async def known() -> bool:
        url = f"{caller.system.gateway_url}/v1/models"
        seen = await caller.ask("GET", url, headers={"Authorization": f"Bearer {token}"})
        return seen.status == 200 and {model["id"] for model in seen.json()["data"]} >= {*MODELS, EMBEDDINGS}

    await until(known, 30, pause=0.1)
