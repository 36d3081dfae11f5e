"""Money, identities, service types and settings."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from shared import identity, money, service_types, strict_json
from shared.service_types import ConfigurationError

UID = "0123456789abcdef0123456789abcdef"
KEY = "A" * 42 + "E="


@pytest.mark.parametrize(("text", "nano"), [("0.10", 10**8), ("0", 0), ("1", 10**9), ("0.000000001", 1)])
def test_money_is_read_exactly(text: str, nano: int) -> None:
    assert money.usd_to_nano(text) == nano


@pytest.mark.parametrize("text", ["", "x", "-1", "NaN", "Infinity", "0.0000000001", "1e-12"])
def test_what_is_no_money_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        money.usd_to_nano(text)


@given(st.integers(0, 10**15))
def test_money_in_json_has_at_most_nine_decimals(nano: int) -> None:
    shown = Decimal(repr(money.nano_to_usd(nano)))
    assert int((shown * 10**9).to_integral_value()) == nano or nano > 2**53
    assert -int(shown.as_tuple().exponent) <= 9 or shown == shown.to_integral_value()


@given(st.decimals(0, 1000, places=15))
def test_a_cost_is_rounded_up_once(usd: Decimal) -> None:
    nano = money.ceil_nano(usd)
    assert 0 <= nano - usd * money.NANO < 1


@pytest.mark.parametrize("user", [f"{UID}:ai", f"{KEY}:ai", f"{UID}:s2s-2"])
def test_user_ids_split_into_identity_and_service_type(user: str) -> None:
    who, row = identity.split_user(user)
    assert identity.user_id(who, row) == user
    assert 0 <= identity.shard(who) < 64


@pytest.mark.parametrize(
    "user", ["", ":", UID, f"{UID}:", f"{UID.upper()}:ai", f"x{UID}:ai", f"{UID}:ai\n", f"{UID}:a:b"]
)
def test_what_is_no_user_id_is_refused(user: str) -> None:
    with pytest.raises(ValueError):
        identity.split_user(user)


def test_shards_are_spread_evenly() -> None:
    counts = [0] * 64
    for number in range(64_000):
        counts[identity.shard(f"{number:032x}")] += 1
    assert 800 < min(counts) <= max(counts) < 1200


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
fxa_client_ids = ["*"]
"""


def load(tmp_path: Path, text: str, *, debug: bool = False) -> service_types.ServiceTypes:
    path = tmp_path / "types.toml"
    path.write_text(text)
    return service_types.load(path, debug=debug)


def test_a_row_is_read_whole(tmp_path: Path) -> None:
    row = load(tmp_path, ROW).rows["ai"]
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
        (ROW, ROW + ROW, "twice"),
        (ROW, "", "service_type"),
        (ROW, "[[", "types.toml"),
    ],
)
def test_a_row_that_can_not_be_used_stops_the_start_and_is_named(
    tmp_path: Path, before: str, after: str, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load(tmp_path, ROW.replace(before, after))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        service_types.load(tmp_path / "nowhere.toml", debug=False)


def test_the_development_table_is_the_documented_one() -> None:
    rows = service_types.load(None, debug=True).rows
    assert {name: (row.max_budget_nano, row.rpm, row.tpm) for name, row in rows.items()} == {
        "ai": (10**8, 40, 2000),
        "s2s": (10**8, 40, 2000),
        "memories": (10**8, 10, 2000),
    }


COMPLETE: dict[str, Any] = {
    "_env_file": None,
    "service_types": "types.toml",
    "mlpa_issuer": "https://auth.example.org",
    "mlpa_signing_keys_dir": "/keys",
    "challenge_secret": "x",
    "fxa_cache_secret": "y",
    "app_development_team": "TEAM",
    "app_attest_bundle_ids": "a,b",
    "master_key": "sk",
    "mlpa_virtual_key": "sk",
}
NEEDED = {
    AuthSettings: [
        "service_types",
        "mlpa_signing_keys_dir",
        "challenge_secret",
        "fxa_cache_secret",
        "app_development_team",
        "app_attest_bundle_ids",
        "master_key",
    ],
    GatewaySettings: ["service_types", "mlpa_virtual_key"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NEEDED.items() for name in names])
def test_production_does_not_start_without_a_secret_and_names_it(kind: Any, name: str) -> None:
    kind.from_environment(**COMPLETE)
    with pytest.raises(ConfigurationError, match=name.upper()):
        kind.from_environment(**{key: value for key, value in COMPLETE.items() if key != name})


@pytest.mark.parametrize("kind", [AuthSettings, GatewaySettings])
def test_development_starts_with_nothing(kind: Any) -> None:
    kind.from_environment(_env_file=None, mlpa_debug=True)


@pytest.mark.parametrize("issuer", ["http://auth.example.org", "ftp://x", "https://", "https://x/?y", "x"])
def test_an_issuer_must_be_https_or_loopback(issuer: str) -> None:
    with pytest.raises(ConfigurationError, match="MLPA_ISSUER"):
        AuthSettings.from_environment(**{**COMPLETE, "mlpa_issuer": issuer})


def test_a_wrong_value_names_its_variable_but_does_not_show_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        GatewaySettings.from_environment(**{**COMPLETE, "port": "secret-value"})
    assert str(caught.value).startswith("PORT: ")
    assert "secret-value" not in str(caught.value)


def test_lists_are_comma_separated() -> None:
    settings = AuthSettings.from_environment(**COMPLETE)
    assert settings.app_attest_bundle_ids == ("a", "b")


@given(st.binary(max_size=200))
def test_strict_json_fails_in_one_way_only(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        strict_json.decode(raw, dict)


@pytest.mark.parametrize("raw", [b'{"a":1,"a":2}', b'{"x":{"a":1,"a":1}}', b'{"a":NaN}', b"[" * 100_000])
def test_strict_json_refuses_what_two_readers_read_differently(raw: bytes) -> None:
    with pytest.raises(ValueError):
        strict_json.decode(raw, dict)
