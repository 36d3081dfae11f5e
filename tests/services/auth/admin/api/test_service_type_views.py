"""/service-types: every field of every row, as the process holds it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from services.auth.admin.api.service_type_views import ServiceTypeBody
from shared.domain.service_types import ServiceType
from tests.services.auth.admin.api.test_views import ask
from tests.services.auth.admin.conftest import ADMIN_SETTINGS, VIEWER
from tests.services.auth.conftest import StartAuth
from tests.support.service_types import toml


async def test_the_rows_are_shown_with_money_and_times(start_auth: StartAuth, tmp_path: Path) -> None:
    path = tmp_path / "types.toml"
    path.write_text(
        toml("ai", max_budget="0.000000001", enforce=False).replace(
            "enforce = false", "enforce = false\nenforce_until = 2025-01-01T00:00:00Z"
        )
        + toml("s2s", total_budget="12.5", enabled=False)
    )
    auth = await start_auth(**ADMIN_SETTINGS, service_types=path)
    status, body, _ = await ask(auth, "GET", "/service-types", VIEWER)
    one, two = body["service_types"]
    assert (status, one["name"], one["max_budget_usd"], one["enforced"]) == (200, "ai", 1e-9, True)
    assert one["enforce_until"] == "2025-01-01T00:00:00.000Z"
    assert (two["enabled"], two["total_budget_usd"], two["enforce_until"]) == (False, 12.5, None)
    assert (await ask(auth, "GET", "/service-types", None))[0] == 401


def test_every_field_of_a_row_is_shown() -> None:
    shown = {name.removesuffix("_usd") for name in ServiceTypeBody.__struct_fields__} | {"enforce"}
    known = {field.name.removesuffix("_nano") for field in msgspec.structs.fields(ServiceType)} | {"enforced"}
    assert shown == known - {"reserved_models", "pool_members"}
