"""Both OpenAPI documents in the hands of others: Swagger UI's examples, and clients made by OpenAPI Generator."""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.openapi_examples import examples
from tests.system.clients import Caller
from tests.system.conftest import FULL
from tests.system.harness import System

JAVA = shutil.which("java")
PACKAGE = "openapi_generator_cli"
#: Neither tests nor pages of the client: they take as long as the client.
ONLY_CODE = [
    "--global-property",
    "models,apis,supportingFiles,apiTests=false,modelTests=false,apiDocs=false,modelDocs=false",
]

Generate = Callable[[dict[str, Any], str], Path]


async def document(caller: Caller, url: str) -> dict[str, Any]:
    found: dict[str, Any] = (await caller.ask("GET", f"{url}/openapi.json")).json()
    return found


async def test_a_chat_is_answered_with_json_or_events(caller: Caller) -> None:
    chat = (await document(caller, caller.system.gateway_url))["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}


async def test_every_example_of_the_gateways_document_is_taken(caller: Caller, token: str) -> None:
    url = caller.system.gateway_url
    for name, example in examples(await document(caller, url)):
        headers = {**example.headers, "Authorization": f"Bearer {token}"}
        seen = await caller.ask(example.method, url + example.path, data=example.data, headers=headers)
        assert seen.status == 200, (name, seen.body)


@pytest.fixture
def generate(tmp_path: Path) -> Generate:
    """Makes a Python package of a document; OpenAPI Generator checks the document first."""
    if JAVA is None:
        pytest.skip("java is not installed")
    jar = importlib.resources.files(pytest.importorskip(PACKAGE)) / "openapi-generator.jar"

    def make(given: dict[str, Any], package: str) -> Path:
        source, folder = tmp_path / f"{package}.json", tmp_path / package
        source.write_text(json.dumps(given))
        options = ["-g", "python", "-i", str(source), "-o", str(folder), "--package-name", package, *ONLY_CODE]
        command = [JAVA, "-XX:TieredStopAtLevel=1", "-jar", str(jar), "generate", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return make


#: What an application does with the clients; given are the services' URLs and an FxA token on stdin.
APPLICATION = """
import json, sys
import auth_client, gateway_client
given = json.load(sys.stdin)
auth = auth_client.ApiClient(auth_client.Configuration(host=given["auth"]))
exchanged = auth_client.TokensApi(auth).post_token(
    "urn:ietf:params:oauth:grant-type:token-exchange", given["token"],
    "urn:ietf:params:oauth:token-type:access_token", "ai",
)
challenge = auth_client.AppAttestApi(auth).get_verify_challenge(given["key_id"])
configuration = gateway_client.Configuration(host=given["gateway"], access_token=exchanged.access_token)
gateway = gateway_client.ApiClient(configuration)
asked = gateway_client.PostV1ChatCompletionsRequest.from_dict(given["chat"])
answer = gateway_client.OpenAIApi(gateway).post_v1_chat_completions(asked)
budget = gateway_client.BudgetApi(gateway).get_v1_budget()
models = gateway_client.OpenAIApi(gateway).get_v1_models()
print(json.dumps({
    "challenge": challenge.challenge, "answer": answer["choices"][0]["message"]["content"],
    "service_type": budget.service_type, "models": [model.id for model in models.data],
}))
"""


def run_application(folders: Iterable[Path], given: dict[str, Any]) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", APPLICATION],
        input=json.dumps(given),
        env={"PYTHONPATH": ":".join(map(str, folders))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not FULL, reason="making the clients takes ten seconds")
async def test_generated_clients_exchange_a_token_and_chat(
    system: System, caller: Caller, token: str, generate: Generate
) -> None:
    documents = {"auth_client": system.auth_url, "gateway_client": system.gateway_url}
    given_documents = [(await document(caller, url), package) for package, url in documents.items()]
    folders = await asyncio.gather(*(asyncio.to_thread(generate, *one) for one in given_documents))
    given = {
        "auth": system.auth_url,
        "gateway": system.gateway_url,
        "token": await caller.fxa_token(),
        "key_id": caller.device().key_id_b64,
        "chat": {"model": "openai/gpt-4o", "messages": [{"role": "user", "content": "Hi"}]},
    }
    said = await asyncio.to_thread(run_application, folders, given)
    assert len(said["challenge"]) == 64
    assert said["answer"] == "It rains in Oslo, Lima is dry."
    assert said["service_type"] == "ai"
    assert "openai/gpt-4o" in said["models"]
