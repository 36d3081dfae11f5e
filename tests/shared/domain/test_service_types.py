"""The rows of service types: read whole, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.domain import service_types
from shared.domain.service_types import ConfigurationError

ROW = """
[[service_type]]
name = "ai"
max_budget = "0.10"
duration = "1d"
rpm = 40
tpm = 2000
models = ["openai/*"]
purposes = ["chat"]
credentials = ["fxa"]
fxa_scopes = ["profile:uid"]
fxa_client_ids = ["*"]
"""


def load(tmp_path: Path, text: str, *, debug: bool = False) -> service_types.ServiceTypes:
    path = tmp_path / "types.toml"
    path.write_text(text)
    return service_types.load(path, debug=debug)


def test_a_row_is_read_whole(tmp_path: Path) -> None:
    row = load(tmp_path, ROW).by_name["ai"]
    assert (row.max_budget_nano, row.duration_seconds, row.total_budget_nano) == (10**8, 86400, 0)
    assert row.allows_model("openai/gpt-4o")
    assert not row.allows_model("vertex/x")
    assert [row.purpose(given) for given in ("chat", "evil", None, "")] == ["chat", "other", "none", "none"]


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ('name = "ai"', 'name = "A I"', "name"),
        ('max_budget = "0.10"', "max_budget = 0.10", "max_budget"),
        ('max_budget = "0.10"', 'max_budget = "ten"', "max_budget"),
        ('max_budget = "0.10"', 'max_budget = "9999999"', "max_budget"),
        ('duration = "1d"', 'duration = "2d"', "duration"),
        ("rpm = 40", "rpm = -1", "rpm"),
        ("rpm = 40", "rpmm = 40", "rpmm"),
        ('credentials = ["fxa"]', 'credentials = ["magic"]', "credentials"),
        ('fxa_client_ids = ["*"]', "fxa_client_ids = []", "fxa_client_ids"),
        ('fxa_client_ids = ["*"]\n', "", "fxa_client_ids"),
        ('fxa_scopes = ["profile:uid"]', "fxa_scopes = []", "fxa_scopes"),
        ('fxa_scopes = ["profile:uid"]\n', "", "fxa_scopes"),
        ("rpm = 40", 'rpm = 40\ntemperature = "2.1"', "temperature"),
        ("rpm = 40", 'rpm = 40\ntemperature = "-1"', "temperature"),
        ("rpm = 40", 'rpm = 40\ntemperature = "\u0661"', "temperature"),
        ("rpm = 40", "rpm = 40\ntemperature = 1.0", "temperature"),
        ("rpm = 40", 'rpm = 40\ntop_p = "1.01"', "top_p"),
        ("rpm = 40", 'rpm = 40\ntop_p = "nan"', "top_p"),
        ('purposes = ["chat"]', "purposes_required = true", "purposes_required"),
        ("rpm = 40", 'rpm = 40\nclient_key = "Not A Name"', "client_key"),
        ("rpm = 40", 'rpm = 40\npool = ""', "pool"),
        ("rpm = 40", 'rpm = 40\naliases = ["a b"]', "aliases"),
        ('max_budget = "0.10"', 'max_budget = ""', "max_budget"),
        ("rpm = 40", 'rpm = 40\nsearch_tool = "exa-search"', "search_tool needs search_cost"),
        ("rpm = 40", 'rpm = 40\nsearch_cost = "0.005"', "search_cost needs search_tool"),
        ("rpm = 40", 'rpm = 40\nsearch_tool = "x"\nsearch_cost = "cheap"', "search_cost"),
        ("rpm = 40", 'rpm = 40\nsearch_tool = "x"\nsearch_cost = ""', "search_cost"),
        ("rpm = 40", 'rpm = 40\nsearch_tool = "../x"\nsearch_cost = "0"', "search_tool"),
        ("rpm = 40", 'rpm = 40\nsearch_tool = ""\nsearch_cost = "0"', "search_tool"),
        (ROW, ROW + ROW, "is repeated"),
        (ROW, ROW + '[[model]]\nname = "a b"\n', "printable"),
        (ROW, ROW + '[[model]]\nname = ""\n', "printable"),
        (ROW, "", "service_type"),
        (ROW, "[[", "types.toml"),
    ],
)
def test_a_row_that_can_not_be_used_stops_the_start_and_is_named(
    tmp_path: Path, before: str, after: str, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load(tmp_path, ROW.replace(before, after))


def test_a_pattern_is_an_exact_name_first(tmp_path: Path) -> None:
    row = load(tmp_path, ROW.replace('"openai/*"', '"a[1]", "b[12]", "c#@*"')).by_name["ai"]
    assert [name for name in ("a[1]", "a1", "b1", "b[12]", "b3", "c#@x+y", "c#") if row.allows_model(name)] == [
        "a[1]",
        "a1",
        "b1",
        "b[12]",
        "c#@x+y",
    ]


def test_a_row_may_say_how_its_requests_are_sampled(tmp_path: Path) -> None:
    row = load(tmp_path, ROW.replace("rpm = 40", 'rpm = 40\ntemperature = "0.7"\ntop_p = "1"')).by_name["ai"]
    assert (row.temperature, row.top_p) == (0.7, 1.0)
    assert load(tmp_path, ROW).by_name["ai"].temperature is None
    assert load(tmp_path, ROW + '[[model]]\nname = "vertex_ai/x@2025#+[1]"\n').models["vertex_ai/x@2025#+[1]"]


def test_a_row_may_name_a_search_tool_and_its_price(tmp_path: Path) -> None:
    row = load(
        tmp_path, ROW.replace("rpm = 40", 'rpm = 40\nsearch_tool = "exa-search"\nsearch_cost = "0.005"')
    ).by_name["ai"]
    assert (row.search_tool, row.search_cost_nano) == ("exa-search", 5_000_000)
    row = load(tmp_path, ROW).by_name["ai"]
    assert (row.search_tool, row.search_cost_nano) == (None, 0)


def test_an_exclusive_model_is_for_the_rows_that_name_it(tmp_path: Path) -> None:
    def row(name: str, models: str) -> str:
        return ROW.replace('"ai"', f'"{name}"').replace('models = ["openai/*"]', models)

    rows = load(
        tmp_path,
        row("ai", 'models = ["*"]')
        + row("answer", 'models = ["gpt"]\nexclusive_models = ["exa"]')
        + row("named", 'models = ["exa", "*"]'),
    ).by_name
    allowed = {
        name: [model for model in ("exa", "gpt", "exa2") if row.allows_model(model)] for name, row in rows.items()
    }
    assert allowed == {"ai": ["gpt", "exa2"], "answer": ["exa", "gpt"], "named": ["exa", "gpt", "exa2"]}


def test_rows_of_a_pool_have_one_capacity(tmp_path: Path) -> None:
    def row(name: str, more: str) -> str:
        return ROW.replace('"ai"', f'"{name}"').replace("rpm = 40", f"rpm = 40\n{more}")

    pooled = 'pool = "signed-in"\nmax_users = {}'
    rows = load(tmp_path, row("b", pooled.format(5)) + row("a", pooled.format(5)) + row("c", "max_users = 7")).by_name
    assert (rows["a"].pool_members, rows["b"].pool_members, rows["c"].pool_members) == (("a", "b"), ("a", "b"), ())
    with pytest.raises(ConfigurationError, match="pool 'signed-in': 'b' and 'a' differ in max_users"):
        load(tmp_path, row("b", pooled.format(5)) + row("a", pooled.format(6)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        service_types.load(tmp_path / "nowhere.toml", debug=False)


def test_the_development_table_is_the_documented_one() -> None:
    rows = service_types.load(None, debug=True).by_name
    assert {name: (row.max_budget_nano, row.rpm, row.tpm) for name, row in rows.items()} == {
        "ai": (10**8, 40, 2000),
        "s2s": (10**8, 40, 2000),
        "memories": (10**8, 10, 2000),
    }


@pytest.mark.parametrize(("credentials", "most"), [('"fxa"', 31), ('"app_attest"', 19), ('"fxa", "app_attest"', 19)])
def test_a_name_that_makes_too_long_user_ids_stops_the_start(tmp_path: Path, credentials: str, most: int) -> None:
    """Not in debug alone: the users would be made with it."""
    row = ROW.replace('credentials = ["fxa"]', f"credentials = [{credentials}]")
    for debug in (True, False):
        fits = "x" * most
        assert fits in load(tmp_path, row.replace('"ai"', f'"{fits}"'), debug=debug).by_name
        with pytest.raises(ConfigurationError, match=f"'x{fits}'.* at most {most}"):
            load(tmp_path, row.replace('"ai"', f'"x{fits}"'), debug=debug)
