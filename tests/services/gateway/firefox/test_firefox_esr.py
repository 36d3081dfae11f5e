"""Firefox itself: the inference engine of an installed Firefox ESR (``toolkit/components/ml``, backend ``openai``).

It is driven by Marionette, against the gateway. Opt in with ``MLPA_TEST_FIREFOX=1``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.local.process import free_port
from tests.doubles.litellm import Script, chunk, event
from tests.services.gateway.firefox.conftest import Door

FIREFOX = shutil.which("firefox-esr")
pytestmark = [
    pytest.mark.skipif(os.environ.get("MLPA_TEST_FIREFOX") != "1", reason="MLPA_TEST_FIREFOX is not 1"),
    pytest.mark.skipif(FIREFOX is None, reason="Debian's package firefox-esr is not installed"),
]

#: Runs the engine once: its answer, or what it says of an error.
SCRIPT = """
const [options, request, done] = arguments;
(async () => {
  const { createEngine } = ChromeUtils.importESModule("chrome://global/content/ml/EngineProcess.sys.mjs");
  const engine = await createEngine(options);
  if (!request.streamOptions) {
    return { text: (await engine.run(request)).finalOutput };
  }
  let text = "";
  for await (const chunk of engine.runWithGenerator(request)) text += chunk.text ?? "";
  return { text };
})().then(done, error => done({ message: String(error), status: error.status ?? null, error: error.error ?? null }));
"""


class Marionette:
    """Firefox's remote protocol (firefox-source-docs, "Protocol" of Marionette): JSON with its length before it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._id = 0

    async def receive(self) -> Any:
        length = await self._reader.readuntil(b":")
        return json.loads(await self._reader.readexactly(int(length[:-1])))

    async def command(self, name: str, **parameters: Any) -> Any:
        self._id += 1
        message = json.dumps([0, self._id, name, parameters]).encode()
        self._writer.write(b"%d:%b" % (len(message), message))
        async with asyncio.timeout(90):
            _, _, error, result = await self.receive()
        assert error is None, error
        return result

    async def chat(self, door: Door, token: str, *, stream: bool = False, **options: Any) -> Any:
        engine = {
            "taskName": "text-generation",
            "featureId": "chat",
            "engineId": "smart-openai",
            "backend": "openai",
            "modelId": "gpt",
            "modelRevision": "main",
            "baseURL": f"{door.url}/v1",
            "serviceType": "ai",
            "purpose": "chat",
            **options,
        }
        request: dict[str, Any] = {"args": [{"role": "user", "content": "Hi"}], "fxAccountToken": token}
        if stream:
            request["streamOptions"] = {"enabled": True}
        answer = await self.command("WebDriver:ExecuteAsyncScript", script=SCRIPT, args=[engine, request])
        return answer["value"]


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Marionette]:
    assert FIREFOX is not None
    port = free_port()
    preferences = {"marionette.port": port, "browser.ml.enable": True, "browser.ml.checkForMemory": False}
    _write(profile, preferences)
    process = await asyncio.create_subprocess_exec(
        *(FIREFOX, "--headless", "--marionette", "--remote-allow-system-access", "--no-remote"),
        *("--profile", str(profile)),
        env={"HOME": str(profile), "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(120):
            while True:
                try:
                    marionette = Marionette(*await asyncio.open_connection("127.0.0.1", port))
                    break
                except OSError:
                    await asyncio.sleep(0.5)
        assert (await marionette.receive())["marionetteProtocol"] == 3
        await marionette.command("WebDriver:NewSession")
        await marionette.command("Marionette:SetContext", value="chrome")
        await marionette.command("WebDriver:SetTimeouts", script=60_000)
        yield marionette
    finally:
        process.terminate()
        await process.wait()


def _write(profile: Path, preferences: dict[str, Any]) -> None:
    profile.mkdir()
    lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items())
    (profile / "user.js").write_text("".join(lines))


async def test_its_engine_chats_and_reads_every_kind_of_answer(door: Door, tmp_path: Path) -> None:
    token = door.auth.fxa_token()
    async with browser(tmp_path / "profile") as firefox:
        assert await firefox.chat(door, token) == {"text": "Hello"}
        assert await firefox.chat(door, token, stream=True) == {"text": "Hello"}
        assert door.count("desktop", "fxa", "success") == 2

        bad = await firefox.chat(door, "a" * 64)
        assert "401 status code" in json.dumps(bad), "by which it fetches another token"
        poor = await firefox.chat(door, token, serviceType="poor", engineId="poor")
        assert "429" in json.dumps(poor)

        limited = {"error": {"message": "slow", "type": "throttling_error", "param": None, "code": "429"}}
        door.double.script("gpt", Script.events([event(chunk("Hel")), event(limited)]))
        broken = await firefox.chat(door, token, stream=True)
        assert "text" not in broken
    assert {asked.body["model"] for asked in door.double.asked} == {"gpt"}
