"""`mlpa service-types diff`: what differs, whom it affects, and whether running processes would take it."""

from __future__ import annotations

from pathlib import Path

import psycopg2
from click.testing import CliRunner, Result

from services.cli.service_types import service_types
from tests.support.service_types import toml


def diff(tmp_path: Path, old: str, new: str, postgres_url: str = "postgresql://127.0.0.1:1/x") -> Result:
    before, after = tmp_path / "before.toml", tmp_path / "after.toml"
    before.write_text(old)
    after.write_text(new)
    env = {"SERVICE_TYPES": str(before), "DATABASE_URL": postgres_url, "MLPA_DEBUG": "false"}
    return CliRunner().invoke(service_types, ["diff", str(after)], env=env)


def spend(postgres_url: str, user_id: str, tier: str, usd: float, *, ago: str = "0", extra: float = 0) -> None:
    with psycopg2.connect(postgres_url) as connection, connection.cursor() as cursor:
        identity, _, service_type = user_id.rpartition(":")
        cursor.execute(
            "insert into users (user_id, identity, service_type, budget_tier) values (%s, %s, %s, %s)",
            (user_id, identity, service_type, tier),
        )
        cursor.execute(
            "insert into ledger values (%s, %s, %s, %s, 'm', 'chat', 10, 20, %s, 86400, 0, 'success', "
            "now() - %s::interval, now())",
            (user_id, user_id, user_id, service_type, int(usd * 1e9), ago),
        )
        if extra:
            cursor.execute(
                "insert into exceptions (user_id, extra_nano, without_rates, ends_at) "
                "values (%s, %s, false, now() + interval '1 hour')",
                (user_id, int(extra * 1e9)),
            )
    connection.close()


def test_users_over_a_lower_budget_are_counted_by_tier_and_period(tmp_path: Path, postgres_url: str) -> None:
    for user, tier, usd, more in (
        ("1:ai", "ai", 0.06, {}),
        ("2:ai", "ai", 0.05, {}),
        ("3:ai", "s2s", 0.09, {}),
        ("4:s2s", "ai", 0.09, {}),
        ("5:ai", "gone", 0.09, {}),
        ("6:ai", "ai", 0.09, {"extra": 0.05}),
        ("7:ai", "ai", 0.09, {"ago": "2 days"}),
    ):
        spend(postgres_url, user, tier, usd, **more)  # type: ignore[arg-type]
    old = toml("ai") + toml("s2s")
    result = diff(tmp_path, old, toml("ai", max_budget="0.05", rpm=7) + toml("s2s"), postgres_url)
    assert (result.exit_code, result.output.splitlines()) == (
        0,
        [
            "service type ai: rpm: 100 -> 7",
            "service type ai: max_budget_usd: 0.1 -> 0.05",
            "service type ai: 6 users, 3 over its budget in this period",
        ],
    )
    hourly = toml("ai", duration="1h") + toml("s2s")
    result = diff(tmp_path, hourly, toml("ai", duration="1h", max_budget="0.05") + toml("s2s"), postgres_url)
    assert result.output.splitlines()[-1] == "service type ai: 6 users, 3 over its budget in this period"


def test_rows_that_come_and_the_same_table_ask_no_database(tmp_path: Path) -> None:
    assert diff(tmp_path, toml("ai"), toml("ai")).output == ""
    new = toml("ai") + toml("s2s") + '[[model]]\nname = "m"\nenabled = false\n'
    result = diff(tmp_path, toml("ai"), new)
    assert (result.exit_code, result.output) == (0, "service type s2s: added\nmodel m: added\n")
    back = diff(tmp_path, toml("ai") + '[[model]]\nname = "m"\n', toml("ai"))
    assert (back.exit_code, back.output) == (0, "model m: removed\n")


def test_a_table_that_running_processes_would_refuse_is_shown_all_the_same(tmp_path: Path, postgres_url: str) -> None:
    result = diff(tmp_path, toml("ai") + toml("s2s"), toml("ai", duration="7d"), postgres_url)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[:3] == [
        "service type s2s: removed",
        "service type ai: duration_seconds: 86400 -> 604800",
        "service type ai: 0 users, 0 over its budget in this period",
    ]
    assert "would refuse it" in lines[3]
    assert "duration" in lines[3]


def test_a_table_that_can_not_be_read_is_named_with_its_line(tmp_path: Path) -> None:
    result = diff(tmp_path, toml("ai"), toml("ai", rpm=-1))
    assert result.exit_code == 1
    assert "line 5" in result.output
    result = diff(tmp_path, toml("ai"), toml("ai", rpm=7))
    assert (result.exit_code, "PostgreSQL: " in result.output) == (1, True)
