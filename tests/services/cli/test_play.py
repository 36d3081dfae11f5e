"""``mlpa play``: a simulated install against running services and the stand-in for Google."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.cli.supervisor import RunningSystem
from services.local.play import PACKAGE, Install
from tests.services.cli.test_shipped import mlpa
from tests.services.gateway.firefox.conftest import StartDoor, double, pki, start_auth, start_door
from tests.support.google import google
from tests.support.service_types import toml

__all__ = ["double", "pki", "start_auth", "start_door"]


@pytest.fixture
async def data(start_door: StartDoor, tmp_path: Path) -> AsyncIterator[Path]:
    """The data folder of a local system."""
    folder = tmp_path / "data"
    folder.mkdir()
    table = folder / "types.toml"
    table.write_text(toml("s2s", credentials=["play"]) + toml("ai"))
    async with google(folder) as (_, settings):
        door = await start_door(auth_settings={**settings, "service_types": table}, service_types=table)
        environment = {"PLAY_BASE_URL": settings["play_base_url"], "PLAY_PACKAGES": PACKAGE}
        RunningSystem(door.url, door.auth.url, "", "", "", folder, "", environment).save()
        yield folder


async def test_an_install_is_made_once_and_chats_either_way(data: Path) -> None:
    code, made = await mlpa("play", "--data", str(data), "new")
    install = Install.from_json((data / "play.json").read_text())
    assert (code, made, install.package) == (0, f"{install.user_id}\n", PACKAGE)
    assert (data / "play.json").stat().st_mode & 0o077 == 0
    for options in ((), ("--as", "android")):
        assert await mlpa("play", "--data", str(data), "chat", "--model", "gpt", *options) == (0, "Hello\n")
    code, token = await mlpa("play", "--data", str(data), "token")
    assert (code, token.count(".")) == (0, 2)


async def test_what_is_wrong_is_told_in_one_line(data: Path) -> None:
    code, said = await mlpa("play", "--data", str(data), "token")
    assert (code, said) == (1, f"Error: {data / 'play.json'} is not there; make an install: mlpa play new\n")
    await mlpa("play", "--data", str(data), "new", "--package", "org.example.other")
    code, said = await mlpa("play", "--data", str(data), "token")
    assert (code, said.startswith("Error: POST /verify/play: 401 integrity_rejected")) == (1, True)
