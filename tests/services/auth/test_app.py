"""The warnings about trust anchors at auth's start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.auth.app import prepare
from services.auth.appattest.policy import apple_root_pem
from services.auth.settings import AuthSettings
from services.local.pki import Pki

_ROOT, _DEVELOPMENT = "app_attest_root_is_not_apples", "app_attest_takes_development_keys"


@pytest.mark.parametrize(
    ("root", "settings", "told"),
    [
        (None, {}, []),
        ("apple", {}, []),
        ("test", {}, [_ROOT]),
        ("test", {"app_attest_production": True}, [_ROOT]),
        (None, {"mlpa_debug": False, "app_attest_production": True}, []),
        (None, {"mlpa_debug": False}, [_DEVELOPMENT]),
        ("test", {"mlpa_debug": False}, [_ROOT, _DEVELOPMENT]),
    ],
    ids=str,
)
def test_other_trust_than_productions_is_warned_of_at_each_start(
    root: str | None,
    settings: dict[str, Any],
    told: list[str],
    pki: Pki,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = AuthSettings.from_environment(mlpa_debug=True, mlpa_signing_keys_dir=tmp_path / "keys", _env_file=None)
    path = tmp_path / "root.pem"
    path.write_bytes(pki.root_pem if root == "test" else apple_root_pem())
    prepare(made)
    capsys.readouterr()
    prepare(made.model_copy(update={"app_attest_root_ca": path if root else None, **SERVICES, **settings}))
    shown = capsys.readouterr().out
    assert [text for text in (_ROOT, _DEVELOPMENT) if text in shown] == told
    if _ROOT in told:
        assert shown.count(":") > 31, "the fingerprint"


SERVICES: dict[str, Any] = {"service_types": Path(__file__).parents[3] / "shared" / "domain" / "development.toml"}
