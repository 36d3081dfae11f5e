"""The page of service types, with tables that are shipped and with rows of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.auth.admin.console.filters import period
from shared.domain.service_types import DURATIONS
from tests.services.auth.admin.conftest import ADMIN_SETTINGS, People
from tests.services.auth.conftest import StartAuth

REPOSITORY = Path(__file__).parents[5]
MODELS = """
[[model]]
name = "plain"

[[model]]
name = "thinks"
reasoning = true

[[model]]
name = "says"
min_completion_tokens = 77
input_cost_per_token = "0.000001"
output_cost_per_token = "0.000002"
"""


@pytest.mark.parametrize(
    "table", [REPOSITORY / "shared/domain/development.toml", *REPOSITORY.glob("deploy/**/service_types.toml")], ids=str
)
async def test_each_table_that_is_shipped_is_shown(start_auth: StartAuth, people: People, table: Path) -> None:
    auth = await start_auth(**ADMIN_SETTINGS, service_types=table)
    person = await people.signed_in(auth)
    page = await person.get("/admin/service-types")
    assert page.status == 200
    assert "Requests per minute" in page.words


async def test_the_least_completion_of_a_model_is_its_rows_or_that_of_its_kind(
    start_auth: StartAuth, people: People, tmp_path: Path
) -> None:
    table = tmp_path / "service_types.toml"
    table.write_text((REPOSITORY / "deploy/kubernetes/base/service_types.toml").read_text() + MODELS)
    auth = await start_auth(**ADMIN_SETTINGS, service_types=table)
    person = await people.signed_in(auth)
    words = (await person.get("/admin/service-types")).words
    assert "plain LiteLLM’s LiteLLM’s 16, or 1,024 if LiteLLM says that it reasons no" in words
    assert "thinks LiteLLM’s LiteLLM’s 1,024 yes" in words
    assert "says 0.000001 0.000002 77 no" in words


def test_every_duration_has_words() -> None:
    assert [period(seconds) for seconds in DURATIONS.values()] == ["hour", "day", "7 days", "30 days"]
