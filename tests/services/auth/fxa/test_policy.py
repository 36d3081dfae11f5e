"""The policy on FxA identities."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from services.auth.fxa import policy
from services.auth.fxa.errors import ClientNotAllowed, ScopeNotAllowed
from services.auth.fxa.models import FxAIdentity
from shared.domain.service_types import ConfigurationError, ServiceType, load
from tests.services.auth.fxa.harness import UID
from tests.support.service_types import service_type, toml

IDENTITY = FxAIdentity(UID, "5882386c6d801776", ("profile",), None, "remote")


@pytest.fixture
def row() -> ServiceType:
    return service_type(fxa_scopes=("profile:uid",), fxa_client_ids=("5882386c6d801776",))


def test_a_named_client_with_the_scopes_may(row: ServiceType) -> None:
    policy.check(IDENTITY, row)


def test_any_client_may_where_that_is_written(row: ServiceType) -> None:
    policy.check(
        msgspec.structs.replace(IDENTITY, client_id="other"), msgspec.structs.replace(row, fxa_client_ids=("*",))
    )


@pytest.mark.parametrize("clients", [(), ("ffffffffffffffff",), ("5882386c6d80177",), ("5882386c6d8017766",)])
def test_another_client_may_not_and_no_list_is_not_any(row: ServiceType, clients: tuple[str, ...]) -> None:
    with pytest.raises(ClientNotAllowed):
        policy.check(IDENTITY, msgspec.structs.replace(row, fxa_client_ids=clients))


def test_every_scope_of_the_row_is_needed(row: ServiceType) -> None:
    row = msgspec.structs.replace(row, fxa_scopes=("profile:uid", "https://identity.mozilla.com/apps/smartwindow"))
    with pytest.raises(ScopeNotAllowed):
        policy.check(IDENTITY, row)


def test_a_row_that_names_no_client_stops_the_start_outside_of_debug(tmp_path: Path) -> None:
    table = tmp_path / "types.toml"
    table.write_text(toml(fxa_client_ids=[]))
    with pytest.raises(ConfigurationError, match="fxa_client_ids"):
        load(table, debug=False)
    load(table, debug=True)
