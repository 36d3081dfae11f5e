"""The named keys, and the variables that they come from."""

from __future__ import annotations

import hashlib
from datetime import date
from typing import Any

import pytest

from services.auth.admin.access.admin_keys import AdminKey, AdminKeys
from services.auth.settings import AuthSettings
from shared.domain.service_types import ConfigurationError

DIGEST = hashlib.sha256(b"one").hexdigest()


def keys(**settings: Any) -> AdminKeys:
    return AdminKeys.from_settings(AuthSettings(_env_file=None, **{"mlpa_debug": True, **settings}))


def test_each_variable_gives_its_keys_their_name_and_role() -> None:
    found = keys(
        mlpa_admin_keys=f"jane:admin:{DIGEST}, joe:viewer:{hashlib.sha256(b'two').hexdigest().upper()},",
        mlpa_admin_key="three",
        mlpa_ui_access_key="four",
    )
    roles = {secret: found.find(secret) for secret in ("one", "two", "three", "four")}
    assert {secret: key and (key.name, key.role, key.may_change) for secret, key in roles.items()} == {
        "one": ("jane", "admin", True),
        "two": ("joe", "viewer", False),
        "three": ("admin", "admin", True),
        "four": ("ui", "viewer", False),
    }


@pytest.mark.parametrize("wrong", ["", "One", "one ", DIGEST, "jane", "\udcff", "ö" * 1000])
def test_nothing_but_the_key_itself_is_the_key(wrong: str) -> None:
    assert keys(mlpa_admin_keys=f"jane:admin:{DIGEST}").find(wrong) is None


def test_without_any_key_there_is_no_console() -> None:
    assert not keys()
    assert not keys(mlpa_admin_keys=" , ")


@pytest.mark.parametrize(
    ("variable", "settings"),
    [
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": "a-key-in-the-clear"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"jane:owner:{DIGEST}"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"jane:admin:{DIGEST[:-1]}"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"jane:admin:{DIGEST}00"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f":admin:{DIGEST}"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"ja ne:admin:{DIGEST}"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"jane:admin:{DIGEST},jane:viewer:{'0' * 64}"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"jane:admin:{DIGEST},joe:viewer:{DIGEST}"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"jane:admin:{DIGEST}:"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"jane:admin:{DIGEST}:tomorrow"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"jane:admin:{DIGEST}:2026-02-30"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"jane:admin:{DIGEST}:20260228"}),
        ("MLPA_ADMIN_KEYS", {"mlpa_admin_keys": f"jane:admin:{DIGEST}:2026-02-28:x"}),
        ("MLPA_ADMIN_KEY", {"mlpa_admin_keys": f"admin:viewer:{DIGEST}", "mlpa_admin_key": "x"}),
        ("MLPA_UI_ACCESS_KEY", {"mlpa_admin_key": "x", "mlpa_ui_access_key": "x"}),
    ],
)
def test_a_wrong_setting_is_named_and_not_shown(variable: str, settings: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        keys(**settings)
    assert str(caught.value).startswith(f"{variable}:")
    assert "in-the-clear" not in str(caught.value)
    assert DIGEST[:8] not in str(caught.value)


@pytest.mark.parametrize("trivial", ["", "one\n", "jane", "two"])
def test_nothing_is_no_key_even_if_its_digest_is_one(trivial: str) -> None:
    found = keys(mlpa_admin_keys=f"jane:admin:{hashlib.sha256(trivial.encode()).hexdigest()}")
    assert found.find("") is None
    assert (found.find(trivial) is None) == (trivial == "")


def test_a_key_is_good_to_the_end_of_its_last_day_and_is_announced_once_a_day(
    capsys: pytest.CaptureFixture[str],
) -> None:
    day = [date(2026, 3, 1)]
    until = AdminKey("jane", "admin", hashlib.sha256(b"one").digest(), date(2026, 3, 16))
    found = AdminKeys([until], today=lambda: day[0])
    assert found.find("one") == found.named("jane") == until
    assert capsys.readouterr().out == ""
    day[0] = date(2026, 3, 2)
    for _ in range(3):
        assert found.find("one") == until
    said = capsys.readouterr().out
    assert said.count("admin_key_ends") == 1
    assert "2026-03-16" in said
    day[0] = date(2026, 3, 16)
    assert found.find("one") == until
    day[0] = date(2026, 3, 17)
    assert found.find("one") is None
    assert found.named("jane") is None, "its sessions end too"
    assert found, "the console stays"


def test_a_key_that_has_ended_stops_no_start_but_opens_nothing() -> None:
    found = keys(mlpa_admin_keys=f"jane:admin:{DIGEST}:2020-01-01,joe:viewer:{hashlib.sha256(b'two').hexdigest()}")
    assert found.find("one") is None
    assert found.find("two") is not None
