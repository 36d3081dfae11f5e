"""Every setting is documented: in the README, and by the command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from services.auth.settings import AuthSettings
from services.cli.settings import settings
from services.gateway.settings import GatewaySettings

ROOT = Path(__file__).parents[3]


def test_the_readme_has_the_table_that_the_command_prints() -> None:
    table = CliRunner().invoke(settings, ["--markdown"]).output.strip()
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"<!-- settings: .*? -->\n(.*?)\n<!-- /settings -->", readme, re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == table, "paste the output of: mlpa settings --markdown"


def test_every_setting_has_a_sentence() -> None:
    for kind in (AuthSettings, GatewaySettings):
        for name, field in kind.model_fields.items():
            assert field.description, name
            assert field.description.endswith("."), name


def test_the_example_names_only_settings_that_exist() -> None:
    names = {name.upper() for kind in (AuthSettings, GatewaySettings) for name in kind.model_fields}
    named = re.findall(r"^#?([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert set(named) <= names
    assert {"CHALLENGE_SECRET", "FXA_CACHE_SECRET", "SERVICE_TYPES", "MLPA_VIRTUAL_KEY", "MASTER_KEY"} <= set(named)


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHALLENGE_SECRET", "canary-1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:canary-2@h/d")
    output = CliRunner().invoke(settings).output
    assert "canary" not in output
    assert "********" in output


def test_users_and_passwords_of_urls_are_masked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of every setting that can hold a URL: those that are text, or a list of texts."""
    monkeypatch.chdir(tmp_path)
    checked, names = ("trusted_proxy_networks", "play_certificates"), []
    for kind in (AuthSettings, GatewaySettings):
        for name, field in kind.model_fields.items():
            if field.annotation in (str, str | None, tuple[str, ...]) and name not in checked:
                names.append(name)
                monkeypatch.setenv(name.upper(), f"https://canary:can/a@ry@{name}.example/v1")
    monkeypatch.setenv("LITELLM_API_BASE", "http://canary@one.example,http://two.example,http://:canary@three.example")
    output = CliRunner().invoke(settings).output
    assert not re.search("canary|can/a", output)
    assert len(names) > 8
    for name in set(names) - {"litellm_api_base"}:
        assert f"https://********@{name}.example/v1" in output
    assert "http://********@one.example,http://two.example,http://********@three.example" in output
