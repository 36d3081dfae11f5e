"""``mlpa device chat`` and ``mlpa fxa chat``: as a client that exchanges, and as Firefox was shipped."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner, Result

from services.cli.commands import cli
from services.cli.supervisor import RunningSystem
from services.local.device import Device
from shared.domain.service_types import ConfigurationError
from tests.services.gateway.firefox.conftest import Door, door, double, pki, start_auth, start_door

__all__ = ["door", "double", "pki", "start_auth", "start_door"]


@pytest.fixture
def data(door: Door, tmp_path: Path) -> Path:
    """The data folder of a local system."""
    folder = tmp_path / "data"
    folder.mkdir()
    fxa = door.auth.settings.fxa_base_url.removesuffix("/v1")
    RunningSystem(door.url, door.auth.url, fxa, "", "", folder, "", {}).save()
    return folder


async def invoke(*arguments: str, **environment: str) -> Result:
    """What the command does, without what the services log in this process."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        return await asyncio.to_thread(CliRunner(env=environment).invoke, cli, arguments)
    finally:
        structlog.reset_defaults()


async def mlpa(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    done = await invoke(*arguments)
    if isinstance(done.exception, ConfigurationError):  # as the entry point ends, which has tests of its own
        return 2, f"mlpa: {done.exception}\n"
    return done.exit_code, done.output


async def test_a_device_chats_either_way_and_its_counter_is_kept(door: Door, data: Path) -> None:
    device = await door.device()
    (data / "device.json").write_text(device.to_json())
    command = ("device", "--data", str(data), "chat", "--scope", "s2s", "--model", "gpt")
    for options, client in ((("--as", "ios"), 1), ((), 1), (("--as", "ios"), 2)):
        result = await mlpa(*command, *options)
        assert result == (0, "Hello\n")
        assert door.count("ios", "app_attest_request", "success") == client
    assert Device.from_json((data / "device.json").read_text()).counter == 3


async def test_an_account_chats_either_way(door: Door, data: Path) -> None:
    command = ("fxa", "chat", "--data", str(data), "--model", "gpt")
    for options, requests in ((("--as", "desktop"), 1), ((), 1)):
        result = await mlpa(*command, *options)
        assert result == (0, "Hello\n")
        assert door.count("desktop", "fxa", "success") == requests


async def test_a_refusal_is_told_in_one_line(door: Door, data: Path) -> None:
    result = await mlpa("fxa", "chat", "--data", str(data), "--model", "nothing", "--as", "desktop")
    assert result == (1, "Error: POST /v1/chat/completions: 400 8\n")
    result = await mlpa("fxa", "chat", "--data", str(data), "--scope", "nothing", "--as", "desktop")
    assert result == (1, "Error: POST /v1/chat/completions: 400 9\n")
    result = await mlpa("fxa", "chat", "--data", str(data / "elsewhere"), "--as", "desktop")
    assert "does not tell where the system runs" in result[1]
