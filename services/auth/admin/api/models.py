"""The bodies of requests and answers of the API of user management."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec

from services.auth.admin.times import rfc3339
from services.auth.users.operators import User
from services.auth.users.operators_storage import LedgerRow
from shared.domain.money import nano_to_usd


class ExceptionBody(msgspec.Struct, frozen=True):
    """What a user may beside its tier, and until when: more money in each period, no rates."""

    until: str
    extra_budget_usd: float
    without_rates: bool
    reason: str | None


class UserBody(msgspec.Struct, frozen=True):
    """A user and its current period. Times are RFC 3339, money is USD."""

    user_id: str
    service_type: str
    budget_tier: str
    blocked: bool
    created_at: str
    last_seen_at: str
    spent_usd: float
    reserved_usd: float
    max_budget_usd: float
    resets_at: str
    #: Only of a user who has one.
    exception: ExceptionBody | msgspec.UnsetType = msgspec.UNSET


class UsersBody(msgspec.Struct, frozen=True):
    users: list[UserBody]
    next_cursor: str | None
    estimated_total: int


class LedgerRowBody(msgspec.Struct, frozen=True):
    """One request. ``id`` is unique; ``request_id`` is the X-Request-ID, which a client may choose."""

    id: str
    request_id: str
    service_type: str
    model: str
    purpose: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    outcome: str
    admitted_at: str
    settled_at: str


class LedgerBody(msgspec.Struct, frozen=True):
    rows: list[LedgerRowBody]


#: Free text of a person; PostgreSQL stores no NUL.
Reason = Annotated[str, msgspec.Meta(max_length=500, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]


class BlockRequest(msgspec.Struct, frozen=True):
    reason: Reason | None = None


class RevokeRequest(msgspec.Struct, frozen=True):
    reason: Reason | None = None


class ExceptionRequest(msgspec.Struct, frozen=True):
    until: Annotated[datetime, msgspec.Meta(tz=True)]
    extra_budget_usd: float = 0.0
    without_rates: bool = False
    reason: Reason | None = None


class BudgetRequest(msgspec.Struct, frozen=True):
    service_type: str


_Body = TypeVar("_Body", bound=msgspec.Struct)


def body_of(kind: type[_Body], row: Any, **others: Any) -> _Body:
    """A body with the row's values of the same names, of which times become RFC 3339, and with ``others``."""
    same = {name: getattr(row, name) for name in kind.__struct_fields__ if name not in others}
    return kind(**others, **{n: rfc3339(value) if isinstance(value, datetime) else value for n, value in same.items()})


def user_body(user: User) -> UserBody:
    row, spent = user.row, user.spent
    exception: ExceptionBody | msgspec.UnsetType = msgspec.UNSET
    if given := row.exception:
        usd = nano_to_usd(given.extra_nano)
        exception = ExceptionBody(_second(given.until), usd, given.without_rates, row.exception_reason)
    return body_of(
        UserBody,
        row,
        blocked=row.blocked_at is not None,
        spent_usd=nano_to_usd(spent.spent_nano),
        reserved_usd=nano_to_usd(spent.reserved_nano),
        max_budget_usd=nano_to_usd(spent.max_budget_nano),
        resets_at=_second(spent.resets_at),
        exception=exception,
    )


def _second(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ledger_body(row: LedgerRow) -> LedgerRowBody:
    return body_of(LedgerRowBody, row, cost_usd=nano_to_usd(row.cost_nano))
