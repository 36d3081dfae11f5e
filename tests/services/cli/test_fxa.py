"""``mlpa fxa``: a token of the stand-in, and a purge of a user's cached verifications."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner, Result

from services.auth.fxa.models import FxAConfig
from services.auth.fxa.services import FxAVerifier
from services.cli.fxa import fxa
from services.cli.supervisor import RunningSystem
from services.local.process import free_port
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from tests.services.local.test_fxa import running

UID = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("fxa"), free_port()
    with running(folder, port):
        yield f"http://127.0.0.1:{port}/v1"


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={"MLPA_DEBUG": "true", **environment}).invoke(fxa, arguments)


async def verify(base_url: str, redis_url: str, token: str) -> tuple[str, str]:
    config = FxAConfig(base_url, base_url.removesuffix("/v1"), b"the secret")
    async with (
        connect(redis_url) as redis,
        aiohttp.ClientSession() as session,
        FxAVerifier.open(config, redis=redis, session=session, registry=Registry()) as verifier,
    ):
        identity = await verifier.verify(token)
        return identity.uid, identity.source


@pytest.mark.parametrize("opaque", [False, True])
def test_a_token_is_printed_and_a_purge_makes_it_be_verified_again(base_url: str, redis_url: str, opaque: bool) -> None:
    token = invoke("token", "--uid", UID, "--scope", "profile", *["--opaque"] * opaque, FXA_BASE_URL=base_url)
    assert token.exit_code == 0
    text = token.stdout.strip()
    assert (len(text) == 64) is opaque
    direct = "remote" if opaque else "local"
    assert asyncio.run(verify(base_url, redis_url, text)) == (UID, direct)
    assert asyncio.run(verify(base_url, redis_url, text)) == (UID, "cache")

    environment = {
        "REDIS_URL": redis_url,
        "FXA_BASE_URL": base_url,
        "FXA_ISSUER": base_url.removesuffix("/v1"),
        "FXA_CACHE_SECRET": "the secret",
    }
    assert invoke("purge", UID, **environment).stdout == "dropped 1\n"
    assert invoke("purge", UID, **environment).stdout == "dropped 0\n"
    assert asyncio.run(verify(base_url, redis_url, text)) == (UID, direct)


@pytest.mark.parametrize(("command", "event"), [("password-change", "password-change"), ("delete", "delete-user")])
def test_an_account_changes_by_its_uid_or_a_token_of_it(base_url: str, command: str, event: str) -> None:
    jwt, opaque = (
        invoke("token", "--uid", UID, *more, FXA_BASE_URL=base_url).stdout.strip() for more in ((), ("--opaque",))
    )
    for account in (opaque, jwt, UID):
        assert invoke(command, account, FXA_BASE_URL=base_url).stdout == f"{event} of {UID}: auth answered 405\n"
    result = invoke(command, opaque, FXA_BASE_URL=base_url)  # destroyed
    assert result.exit_code == 1
    assert "answered 400" in result.stderr


def test_a_purge_that_could_not_be_done_is_an_error(unused_port: int) -> None:
    result = invoke("purge", UID, REDIS_URL=f"redis://127.0.0.1:{unused_port}/0", FXA_CACHE_SECRET="s")
    assert result.exit_code == 1
    assert "Redis did not answer" in result.stderr


@pytest.mark.parametrize("uid", ["", UID[:-1], UID.upper(), UID + ":ai"])
def test_what_is_no_uid_is_told(uid: str) -> None:
    assert invoke("purge", uid).exit_code == 2


def test_the_stand_in_is_that_of_the_system_that_runs(base_url: str, tmp_path: Path) -> None:
    RunningSystem("", "", base_url.removesuffix("/v1"), "", "", tmp_path, "", {}).save()
    assert invoke("token", "--data", str(tmp_path)).exit_code == 0


def test_a_stand_in_that_is_not_there_is_told(unused_port: int) -> None:
    result = invoke("token", "--fxa-url", f"http://127.0.0.1:{unused_port}/v1")
    assert result.exit_code == 1
    assert "no FxA stand-in" in result.stderr
