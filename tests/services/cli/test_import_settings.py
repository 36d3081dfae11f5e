"""The table made from another server's settings."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.cli.commands import cli
from shared.domain.service_types import ServiceTypes, parse

ENV = """
# production
USER_FEATURE_BUDGET_AI_BUDGET_ID=end-user-budget-ai
USER_FEATURE_BUDGET_AI_MAX_BUDGET=0.25
USER_FEATURE_BUDGET_AI_RPM_LIMIT=30
USER_FEATURE_BUDGET_AI_TPM_LIMIT=5000
USER_FEATURE_BUDGET_AI_BUDGET_DURATION=24h
USER_FEATURE_BUDGET_MEMORIES_MAX_BUDGET=0.05
USER_FEATURE_BUDGET_S2S_RPM_LIMIT=7
USER_FEATURE_BUDGET_AGENT_SEARCH_BUDGET_DURATION=7d
USER_FEATURE_BUDGET_ANSWER_MAX_BUDGET=0.2
USER_FEATURE_BUDGET_AI_DEV_MAX_BUDGET=2
MLPA_ENFORCE_SIGNIN_CAP=true
MLPA_MAX_SIGNED_IN_USERS=5000
MLPA_CAPPED_SERVICE_TYPES='["ai", "memories"]'
MLPA_EXPERIMENTATION_AUTHORIZATION_TOKEN=a-token-that-nobody-may-see
MASTER_KEY=sk-secret-of-litellm
DB_PASSWORD=another-secret
SOMETHING_ELSE=yes
TEMPERATURE=0.1
"""


def run(tmp_path: Path, text: str, *options: str) -> tuple[Result, ServiceTypes | None]:
    file = tmp_path / "old.env"
    file.write_text(text)
    result = CliRunner().invoke(cli, ["import-settings", str(file), *options])
    return result, parse(result.stdout.encode(), None, debug=False) if result.exit_code == 0 else None


def test_budgets_capacity_models_and_purposes_become_rows(tmp_path: Path) -> None:
    result, table = run(tmp_path, ENV)
    assert table is not None, result.output
    rows = table.by_name
    assert set(rows) == {"ai", "memories", "s2s", "agent-search", "answer", "ai-dev"}
    ai = rows["ai"]
    assert (ai.max_budget_nano, ai.rpm, ai.tpm, ai.duration_seconds) == (250_000_000, 30, 5000, 86400)
    assert (ai.pool, ai.max_users, ai.pool_members) == ("signed-in", 5000, ("ai", "memories"))
    assert "title-generation" in ai.purposes
    assert (rows["memories"].max_budget_nano, rows["memories"].rpm) == (50_000_000, 10)
    assert (rows["s2s"].rpm, rows["s2s"].pool) == (7, None)
    assert rows["s2s"].credentials == ("app_attest", "app_attest_request")
    assert rows["agent-search"].duration_seconds == 7 * 86400
    assert (rows["agent-search"].search_tool, rows["agent-search"].search_cost_nano) == ("exa-search", 5_000_000)
    assert [name for name, row in rows.items() if row.allows_model("exa")] == ["answer"]
    assert rows["ai-dev"].client_key == "dev"
    assert {name: row.search_tool for name, row in rows.items() if row.search_tool} == {"agent-search": "exa-search"}
    assert rows["agent-search"].search_cost_nano == 5_000_000


def test_what_could_not_be_translated_is_said_without_any_secret(tmp_path: Path) -> None:
    result, _ = run(tmp_path, ENV)
    said = result.stderr
    assert "SOMETHING_ELSE: not translated" in said
    assert "DB_PASSWORD: DATABASE_URL has it" in said
    assert f"CLIENT_KEYS=dev:{hashlib.sha256(b'a-token-that-nobody-may-see').hexdigest()}" in said
    assert "s2s-android" in said, "it is served there, and the file does not mention it"
    for secret in ("sk-secret", "another-secret", "nobody-may-see"):
        assert secret not in result.output
    for translated in ("USER_FEATURE_BUDGET_AI_MAX", "MLPA_ENFORCE", "TEMPERATURE"):
        assert translated not in said


def test_every_type_of_that_server_can_be_had_with_its_defaults(tmp_path: Path) -> None:
    result, table = run(tmp_path, "", "--defaults")
    assert table is not None, result.output
    assert {"ai", "memories", "s2s", "search", "telemetry", "agent", "mochi-dev"} <= set(table.by_name)
    assert (table.by_name["s2s-android"].credentials, table.by_name["s2s-android"].aliases) == (("play",), ("s2s",))
    assert table.by_name["ai"].pool is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("USER_FEATURE_BUDGET_AI_BUDGET_DURATION=1mo", "the duration '1mo'"),
        ("USER_FEATURE_BUDGET_AI_RPM_LIMIT=0", "the limit '0'"),
        ("USER_FEATURE_BUDGET_AI_MAX_BUDGET=lots", "not an amount of money"),
        (
            "USER_FEATURE_BUDGET_NEW_MAX_BUDGET=1",
            "USER_FEATURE_BUDGET_NEW: no row, since duration, rpm, tpm is missing",
        ),
    ],
)
def test_a_row_that_can_not_be_had_is_left_out_and_said(tmp_path: Path, line: str, said: str) -> None:
    result, table = run(tmp_path, f"USER_FEATURE_BUDGET_MEMORIES_RPM_LIMIT=5\n{line}\n")
    assert table is not None, result.output
    assert set(table.by_name) == {"memories"}
    assert said in result.stderr


def test_a_type_that_that_version_does_not_have_is_guessed_and_said(tmp_path: Path) -> None:
    lines = ("MAX_BUDGET=1", "RPM_LIMIT=2", "TPM_LIMIT=3", "BUDGET_DURATION=1h", "BUDGET_ID=mine")
    result, table = run(tmp_path, "".join(f"USER_FEATURE_BUDGET_NEW_THING_{line}\n" for line in lines))
    assert table is not None, result.output
    assert table.by_name["new-thing"].duration_seconds == 3600
    assert "are a guess" in result.stderr
    assert "BUDGET_ID: not translated" in result.stderr


def test_a_purpose_is_needed_where_it_was(tmp_path: Path) -> None:
    _, table = run(tmp_path, "USER_FEATURE_BUDGET_AI_RPM_LIMIT=5\nMLPA_REQUIRE_PURPOSE_HEADER=t\n")
    assert table is not None
    assert table.by_name["ai"].purposes_required


def test_a_file_without_any_is_refused(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "PORT=8080\n")
    assert (result.exit_code, result.stdout) == (1, "")
