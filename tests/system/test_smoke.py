"""``mlpa smoke`` against a running system: what works, and what it names when something does not."""

from __future__ import annotations

import asyncio

from click.testing import CliRunner

from services.cli.commands import cli
from services.local.process import free_port
from tests.system.clients import Caller
from tests.system.harness import System


async def smoke(system: System, *arguments: str, **urls: str) -> tuple[int, list[str]]:
    """Exit code and lines of the command."""
    given = {"gateway-url": system.gateway_url, "auth-url": system.auth_url, **urls}
    options = [f"--{name}={url}" for name, url in given.items()]
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["smoke", *options, *arguments])
    return done.exit_code, done.stdout.splitlines()


async def test_a_system_that_works_passes_with_a_chat(system: System, caller: Caller) -> None:
    status, lines = await smoke(system, "--fxa-token", await caller.fxa_token(), "--model", "double")
    assert (status, len(lines)) == (0, 8), lines
    assert all(line.startswith("ok") for line in lines)
    assert "double answered" in lines[-1]


async def test_without_a_token_nothing_is_exchanged(system: System) -> None:
    status, lines = await smoke(system)
    assert (status, len(lines)) == (0, 7), lines


async def test_each_step_that_fails_is_named_and_the_others_are_tried(system: System, caller: Caller) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    status, lines = await smoke(system, **{"gateway-url": nowhere})
    assert status == 1
    assert [line.startswith("ok") for line in lines] == [True, True, True, False, False, False, True]
    other = system.auth_url.replace("127.0.0.1", "localhost")
    status, lines = await smoke(system, **{"auth-url": other})
    failed = [line for line in lines if line.startswith("FAIL")]
    assert (status, failed) == (1, [f"FAIL issuer and key set: the issuer is {system.issuer}, not {other}"])
    status, lines = await smoke(system, "--fxa-token", "0" * 64)
    assert status == 1
    assert lines[-1].startswith("FAIL exchange and chat: POST /token: 400")
    status, lines = await smoke(system, "--fxa-token", await caller.fxa_token(), "--model", "nothing")
    assert status == 1
    assert "400" in lines[-1]
