"""The policy on FxA identities, applied at every exchange, to cached identities too."""

from __future__ import annotations

from services.auth.fxa.errors import ClientNotAllowed, ScopeNotAllowed
from services.auth.fxa.models import FxAIdentity
from services.auth.fxa.scopes import satisfies
from shared.domain.service_types import ServiceType

ANY_CLIENT = "*"


def check(identity: FxAIdentity, row: ServiceType) -> None:
    """Check that a row admits an identity.

    :raises ClientNotAllowed: the row does not name the relying party; a row without any accepts none.
    :raises ScopeNotAllowed: the token lacks one of the row's scopes.
    """
    if ANY_CLIENT not in row.fxa_client_ids and identity.client_id not in row.fxa_client_ids:
        raise ClientNotAllowed
    if not satisfies(identity.scopes, row.fxa_scopes):
        raise ScopeNotAllowed
