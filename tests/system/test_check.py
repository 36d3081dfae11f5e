"""``mlpa check``: what is wrong is said before a start, a line for each thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from services.cli.commands import cli
from services.local.play import StandIn
from tests.system.harness import SERVICE_TYPES, System


def check(system: System, service: str, **environment: str) -> tuple[int, dict[str, str]]:
    done = CliRunner(env={**system.environment, **environment}).invoke(cli, ["check", service])
    return done.exit_code, dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("service", ["auth", "gateway"])
def test_a_sound_system_passes(system: System, service: str) -> None:
    status, lines = check(system, service)
    assert (status, set(lines.values())) == (0, {"ok"}), lines
    assert {"postgres", "redis"} < set(lines)


@pytest.mark.parametrize("service", ["auth", "gateway"])
def test_each_fault_has_its_line_with_the_reason(system: System, service: str, tmp_path: Path) -> None:
    refused = "http://127.0.0.1:1"
    account = tmp_path / "account.json"
    account.write_text(StandIn().service_account(refused))
    status, lines = check(
        system,
        service,
        DATABASE_URL=re.sub("//[^@]*@", "//nobody:hunter2@", system.environment["DATABASE_URL"]),
        REDIS_URL="redis://127.0.0.1:1",
        LITELLM_API_BASE=refused,
        FXA_BASE_URL=f"{refused}/v1",
        MLPA_JWKS_URL=f"{refused}/jwks",
        LITELLM_PROVISION_USERS="true",
        MASTER_KEY="sk-hunter2",
        PLAY_PACKAGES="org.mozilla.firefox",
        PLAY_CERTIFICATES="A" * 43,
        PLAY_CREDENTIALS=str(account),
        FIREFOX_CLIENTS="true",
        EXCHANGE_KEY="a-key-of-the-gateways-0123456789",
    )
    assert status == 1
    assert 'role "nobody" does not exist' in lines["postgres"] or "authentication failed" in lines["postgres"]
    assert "refused" in lines["redis"] or "failed" in lines["redis"]
    assert lines["litellm"] != "ok"
    assert "can't be read" in lines["fxa" if service == "auth" else "auth"]
    assert lines.get("play") == ("Google gives no access token: connection" if service == "auth" else None)
    # auth of this system serves no shipped clients, so it knows no gateway
    unknown = None if service == "auth" else "auth, which needs FIREFOX_CLIENTS too, does not know EXCHANGE_KEY"
    assert lines.get("exchange_key") == unknown
    assert "hunter2" not in str(lines)


@pytest.mark.parametrize("service", ["auth", "gateway"])
def test_a_setting_that_can_not_work_is_a_line_too(system: System, service: str) -> None:
    assert check(system, service, DATABASE_URL="mysql://h/d") == (
        1,
        {"settings": "DATABASE_URL: must be a postgresql:// URL"},
    )
    status, lines = check(system, service, SERVICE_TYPES="/no/such/file.toml")
    assert (status, list(lines)) == (1, ["settings"])
    assert "/no/such/file.toml" in lines["settings"]


@pytest.mark.parametrize("service", ["auth", "gateway"])
def test_a_right_that_redis_does_not_give_is_a_line_too(system: System, service: str) -> None:
    with system.valkey.client() as admin:
        admin.execute_command("ACL", "SETUSER", "nearly", "on", ">secret", "~*", "+@all", "-hincrby")
    url = re.sub("//[^@]*@", "//nearly:secret@", system.environment["REDIS_URL"])
    assert check(system, service, REDIS_URL=url)[1]["redis"] == "the user has no right to: HINCRBY mlpa:{s00}:u:"


def test_a_row_whose_client_key_is_missing_is_a_line_of_the_gateway(system: System, tmp_path: Path) -> None:
    file = tmp_path / "types.toml"
    file.write_text(SERVICE_TYPES.replace('name = "ai"', 'name = "ai"\nclient_key = "dev"'))
    status, lines = check(system, "gateway", SERVICE_TYPES=str(file))
    assert (status, list(lines)) == (1, ["settings"])
    assert "no key named 'dev'" in lines["settings"]
    assert check(system, "auth", SERVICE_TYPES=str(file))[0] == 0
