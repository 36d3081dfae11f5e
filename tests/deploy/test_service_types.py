"""deploy/mozilla/service_types.toml: it loads outside of development, and says what the single-process MLPA serves."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from services.cli.commands import cli
from shared.domain.identity import Credential
from shared.domain.service_types import ServiceTypes, load, parse
from tests.deploy.declarations import ROOT

SETTINGS = """
MLPA_ENFORCE_SIGNIN_CAP=true
MLPA_MAX_SIGNED_IN_USERS=1000000
MLPA_CAPPED_SERVICE_TYPES=["ai","memories"]
MLPA_REQUIRE_PURPOSE_HEADER=true
"""


@pytest.fixture(scope="module")
def example() -> ServiceTypes:
    return load(ROOT / "deploy" / "mozilla" / "service_types.toml", debug=False)


def test_it_is_what_the_import_makes(example: ServiceTypes, tmp_path: Path) -> None:
    file = tmp_path / "old.env"
    file.write_text(SETTINGS)
    made = CliRunner().invoke(cli, ["import-settings", "--defaults", str(file)])
    assert made.exit_code == 0, made.output
    assert dict(parse(made.stdout.encode(), None, debug=False).by_name) == dict(example.by_name)


def test_development_types_need_a_key_and_no_others(example: ServiceTypes) -> None:
    assert {name for name, row in example.by_name.items() if row.client_key} == {
        name for name in example.by_name if name.endswith("-dev")
    }


def test_signed_in_people_share_their_places(example: ServiceTypes) -> None:
    assert example.by_name["ai"].pool_members == example.by_name["memories"].pool_members == ("ai", "memories")
    assert example.by_name["s2s"].pool is None


def test_some_models_belong_to_some_types_in_both_directions(example: ServiceTypes) -> None:
    for model, types in (("exa", {"answer", "sw-answer"}), ("liner", {"liner-answer"})):
        assert {name for name, row in example.by_name.items() if row.allows_model(model)} == types
        assert not any(example.by_name[name].allows_model("gpt") for name in types)


def test_types_with_purposes_demand_one(example: ServiceTypes) -> None:
    assert {name for name, row in example.by_name.items() if row.purposes} == {
        name for name, row in example.by_name.items() if row.purposes_required
    }
    assert example.by_name["agent"].purposes == ("monitor", "research")


def test_each_shipped_client_has_its_credential(example: ServiceTypes) -> None:
    assert example.by_name["ai"].credentials == (Credential.FXA,)
    assert Credential.APP_ATTEST_REQUEST in example.by_name["s2s"].credentials
    assert [row.name for row in example.by_name.values() if Credential.PLAY in row.credentials] == ["s2s-android"]
    assert example.by_name["s2s-android"].aliases == ("s2s",)
