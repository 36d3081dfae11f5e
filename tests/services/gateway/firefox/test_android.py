"""Firefox for Android from its install to an answer: Google's stand-in, auth and a gateway, and its parser's rules."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.local.play import Install, InstallOrder, StandIn
from tests.doubles.litellm import DONE, Script, chunk, event, stream_of
from tests.services.gateway.firefox.clients import Broken, android_stream, chat
from tests.services.gateway.firefox.conftest import Door, StartDoor
from tests.support.google import google
from tests.support.service_types import toml

LIMITED = {"error": {"message": "slow", "type": "throttling_error", "param": None, "code": "429"}}


@pytest.fixture
async def android(start_door: StartDoor, tmp_path: Path) -> AsyncIterator[tuple[Door, StandIn]]:
    folder = tmp_path / "android"
    folder.mkdir()
    table = folder / "types.toml"
    table.write_text(toml("s2s-android", credentials=["play"], aliases=["s2s"], max_budget="1000") + toml("ai"))
    async with google(folder) as (stand_in, settings):
        door = await start_door(
            auth_settings={**settings, "service_types": table}, service_types=table, keepalive_seconds=0.05
        )
        yield door, stand_in


async def verified(door: Door, stand_in: StandIn, install: Install) -> str:
    """An access token, asked for as older builds do: without a content type."""
    body = {
        "user_id": install.user_id,
        "integrity_token": stand_in.mint(InstallOrder(install.request_hash)),
        "package_name": install.package,
    }
    plain: dict[str, Any] = {"skip_auto_headers": ["Content-Type"]}
    status, answer, _ = await door.auth.ask("POST", "/verify/play", data=json.dumps(body).encode(), **plain)
    assert (status, set(answer)) == (200, {"access_token", "token_type", "expires_in"}), answer
    return str(answer["access_token"])


async def test_an_install_chats_for_a_day_with_one_question_to_google(android: tuple[Door, StandIn]) -> None:
    door, stand_in = android
    token = await verified(door, stand_in, Install())
    for service_type in ("s2s-android", "s2s"):
        answer = await door.android(token, chat(stream=True), service_type=service_type)
        assert (answer.status, android_stream(answer.raw)) == (200, "Hello")
    assert (await door.android(token)).status == 200
    assert (await door.android(token, service_type="ai")).status == 403
    assert door.count("android", "play", "success") == 3
    assert stand_in.faults.calls["decode"] == 1
    assert not door.between.asked, "nothing is exchanged for it"


async def test_a_revoked_token_is_a_401_within_a_second(android: tuple[Door, StandIn]) -> None:
    door, stand_in = android
    token = await verified(door, stand_in, Install())
    assert (await door.android(token)).status == 200, "the gateway remembers the token now"
    status, _, _ = await door.auth.ask("POST", "/revoke", data={"token": token})
    assert status == 200
    answer = await door.android(token)
    assert (answer.status, list(answer.json())) == (401, ["detail"])
    other = await verified(door, stand_in, Install())
    assert (await door.android(other)).status == 200


async def test_every_stream_can_be_read_faults_included(android: tuple[Door, StandIn]) -> None:
    door, stand_in = android
    token = await verified(door, stand_in, Install())
    odd = [b": c\n\n", b"event: x\ndata:" + json.dumps(chunk("Hel")).encode() + b"\r\n\r\n", event(chunk("lo")), DONE]
    for parts, pause in ((stream_of(["Hel", "lo"]), 0.2), (odd, 0.02)):
        door.double.script("gpt", Script.events(parts, pause=pause))
        answer = await door.android(token, chat(stream=True))
        assert (answer.status, android_stream(answer.raw)) == (200, "Hello")
    for parts, told in (
        ([event(chunk("Hel")), event(LIMITED)], 5),
        ([event(chunk("Hel"))], "The model's answer was cut short."),
    ):
        door.double.script("gpt", Script.events(parts))
        answer = await door.android(token, chat(stream=True))
        with pytest.raises(Broken) as broken:
            android_stream(answer.raw)
        assert broken.value.args == (told,), "an error that it can read, not a line that it can't"
    door.double.script("gpt", Script.events([event(LIMITED)]))
    answer = await door.android(token, chat(stream=True))
    assert (answer.status, answer.json()["error"]) == (429, 5)
