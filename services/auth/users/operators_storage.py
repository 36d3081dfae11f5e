"""The SQL of operators' work on users. Pages are found by key, so that the last one is as fast as the first.

Every function raises ``DatabaseUnavailable``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from services.auth.pagination import LAST
from shared.domain.identity import identity_of
from shared.state.packed import Excepted
from shared.stores.postgres import Database, Query, Row, Transaction

Sort = Literal["id", "created", "seen"]
#: Lists of users: all, those of a tier, with a blocked identity, with a revoked device, with an exception, on Android.
Which = Literal["all", "tier", "blocked", "revoked", "exception", "installs"]

_USER = """
    select u.user_id, u.identity, u.service_type, u.budget_tier, u.created_at, u.last_seen_at,
           i.blocked_at, i.blocked_reason, d.revoked_at as device_revoked_at,
           e.ends_at as exception_ends_at, e.extra_nano, e.without_rates, e.reason as exception_reason
    from ({users}) u
    left join identities i on i.identity = u.identity
    left join devices d on d.key_id = u.identity
    left join exceptions e on e.user_id = u.user_id and e.ends_at > now()
"""


def _select(users: str, order: str = "") -> Query:
    return Query.text(_USER.format(users=users) + order)


def _page(where: str, order: str, source: str = "users u", *, first: str = "") -> Query:
    """:param first: the order that ``source`` already has, and that its users keep."""
    users = f"select u.* from {source} where {where} order by {first}{order} limit :limit"  # noqa: S608  ours
    return _select(users, f"order by {order}")


def _of(table: str, identity: str, condition: str, comparison: str) -> str:
    """The users of the identities in a table, which is read by its index: however many users there are."""
    return (
        f"(select {identity} as identity from {table} where {condition} and {identity} {comparison}= :identity) one "  # noqa: S608
        "cross join lateral (select * from users where users.identity = one.identity offset 0) u"
    )


_PREFIX = "user_id >= :q and user_id < :end"
_TIMES = {"created": "created_at", "seen": "last_seen_at"}
_PAGES: dict[tuple[str, bool], Query] = {}
for _down, _compare, _order in ((False, ">", ""), (True, "<", " desc")):
    for _sort, _time in _TIMES.items():
        _where = f"({_time}, user_id) {_compare} (cast(:at as timestamptz), :id)"
        _PAGES[_sort, _down] = _page(_where, f"{_time}{_order}, user_id{_order}")
    _where, _by = f"u.user_id {_compare} :id and u.user_id >= :q and u.user_id < :end", f"u.user_id{_order}"
    _ones = f"one.identity{_order}, "
    _PAGES |= {
        ("all", _down): _page(_where, _by),
        ("tier", _down): _page(f"u.budget_tier = :tier and {_where}", _by),
        ("installs", _down): _page(f"credential_of(u.user_id) = 'play' and {_where}", _by),
        ("blocked", _down): _page(
            _where, _by, _of("identities", "identity", "blocked_at is not null", _compare), first=_ones
        ),
        ("revoked", _down): _page(
            _where, _by, _of("devices", "key_id", "revoked_at is not null", _compare), first=_ones
        ),
        ("exception", _down): _page(
            f"x.ends_at > now() and {_where}", _by, "exceptions x join users u on u.user_id = x.user_id"
        ),
    }
_BY_IDS = _select("select * from users where user_id = any(:users)", "order by user_id")
_OF_IDENTITY = _select("select * from users where identity = :identity order by user_id limit 100", "order by user_id")
_LOCK = Query.text("select user_id from users where identity = :identity order by user_id for update")

_MATCHES = Query.text(f"select count(*) as found from (select 1 from users where {_PREFIX} limit :most) as match")  # noqa: S608
_ESTIMATE = Query.text(f"explain (format json) select 1 from users where {_PREFIX}")  # noqa: S608
_COUNTED = 10_000

_CAPACITY = Query.text(
    """
    select service_type, cast(sum(users) as bigint) as users from (
        select service_type, users from capacity union all select service_type, users from capacity_lanes) as counted
    group by service_type
    """
)
# Periods of whole days are summed up from the days that the ledger keeps, as the gateways do
_SPENT = Query.text(
    """
    select user_id, coalesce(case when (until - start) % 86400 = 0
        then (select sum(spent_nano) from user_spend where user_id = s.user_id
            and day >= date '1970-01-01' + cast(start / 86400 as int)
            and day < date '1970-01-01' + cast(until / 86400 as int))
        else (select sum(cost_nano) from ledger where user_id = s.user_id
            and admitted_at >= to_timestamp(start) and admitted_at < to_timestamp(until))
        end, 0) as spent
    from unnest(cast(:users as text[]), cast(:starts as bigint[]), cast(:ends as bigint[])) as s (user_id, start, until)
    """
)
_REVOKED_TOKENS = Query.text(
    "select jti from revocations where user_id = :user_id and expires_at > now() order by expires_at desc limit 100"
)
_LEDGER = Query.text(
    """
    select id, request_id, service_type, model, purpose, prompt_tokens, completion_tokens, cost_nano, outcome,
           admitted_at, settled_at
    from ledger where user_id = :user_id and (admitted_at, id) < (cast(:at as timestamptz), :id)
    order by admitted_at desc, id desc limit :limit
    """
)

# It may fall below 0, where users entered without a limit: the sum with their lanes is exact
_MAKE_ROOM = Query.text(
    "insert into capacity as c (service_type, users) values (:service_type, -1) "
    "on conflict (service_type) do update set users = c.users - 1"
)


@dataclass(frozen=True, slots=True)
class UserRow:
    """A user, with the decisions about its identity."""

    user_id: str
    identity: str
    service_type: str
    budget_tier: str
    created_at: datetime
    last_seen_at: datetime
    blocked_at: datetime | None
    blocked_reason: str | None
    device_revoked_at: datetime | None
    exception_ends_at: datetime | None = None
    extra_nano: int | None = None
    without_rates: bool | None = None
    exception_reason: str | None = None

    @property
    def exception(self) -> Excepted | None:
        """What the user may beside its tier at the moment."""
        if self.exception_ends_at is None:
            return None
        return Excepted(self.exception_ends_at.timestamp(), self.extra_nano or 0, bool(self.without_rates))


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One admitted request."""

    id: str
    request_id: str
    service_type: str
    model: str
    purpose: str
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int
    outcome: str
    admitted_at: datetime
    settled_at: datetime


def _users(rows: Sequence[Row]) -> list[UserRow]:
    return [UserRow(**row) for row in rows]


async def page(
    database: Database,
    *,
    q: str,
    sort: Sort,
    descending: bool,
    after: tuple[str, str] | None,
    limit: int,
    which: Which = "all",
    tier: str = "",
) -> list[UserRow]:
    """Users of a list whose id starts with ``q``; all users when sorted by a time.

    :param after: ``(id, that time as text)`` of the user that the page follows; None for the first page.
    """
    edge = ("", "-infinity") if not descending else (LAST, "infinity")
    user_id, at = after or edge
    if sort in _TIMES:
        return _users(await database.fetch(_PAGES[sort, descending], id=user_id, limit=limit, at=at))
    given = _bounds(q)
    if which == "tier":
        given["tier"] = tier
    if which in ("blocked", "revoked"):
        given["identity"] = identity_of(user_id)
    return _users(await database.fetch(_PAGES[which, descending], id=user_id, limit=limit, **given))


def _bounds(q: str) -> dict[str, str]:
    return {"q": q, "end": q + LAST}


async def estimate(database: Database, q: str) -> int:
    """The number of users whose id starts with ``q``: exact up to 10,000, above that the planner's estimate."""
    found: int = (await database.fetch(_MATCHES, **_bounds(q), most=_COUNTED + 1))[0]["found"]
    if found <= _COUNTED:
        return found
    plan = (await database.fetch(_ESTIMATE, **_bounds(q)))[0]["QUERY PLAN"]
    return max(found, int(plan[0]["Plan"]["Plan Rows"]))


async def by_ids(database: Database | Transaction, users: Sequence[str]) -> list[UserRow]:
    return _users(await database.fetch(_BY_IDS, users=list(users)))


async def of_identity(database: Database, identity: str) -> list[UserRow]:
    return _users(await database.fetch(_OF_IDENTITY, identity=identity))


async def counts(database: Database) -> dict[str, int]:
    """Users by service type."""
    return {row["service_type"]: row["users"] for row in await database.fetch(_CAPACITY)}


async def spent(database: Database, spans: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Nano-dollars in the ledger of each user's requests admitted in a span of Unix time, its end excluded."""
    if not spans:
        return {}
    rows = await database.fetch(
        _SPENT,
        users=list(spans),
        starts=[start for start, _ in spans.values()],
        ends=[end for _, end in spans.values()],
    )
    return {row["user_id"]: int(row["spent"]) for row in rows}


async def revoked_tokens(database: Database, user_id: str) -> list[str]:
    """The ids of a user's tokens that were revoked and have not expired, the newest hundred."""
    return [row["jti"] for row in await database.fetch(_REVOKED_TOKENS, user_id=user_id)]


async def ledger(
    database: Database, user_id: str, *, limit: int, before: tuple[str, str] | None = None
) -> list[LedgerRow]:
    """Requests of a user, newest first.

    :param before: ``(id, admission time as text)`` of the request that the page follows.
    """
    row_id, at = before or (LAST, "infinity")
    rows = await database.fetch(_LEDGER, user_id=user_id, id=row_id, at=at, limit=limit)
    return [LedgerRow(**row) for row in rows]


async def lock(transaction: Transaction, user_id: str, identity: str) -> UserRow | None:
    """Lock a user, and all users of its identity, until the transaction ends."""
    await transaction.fetch(_LOCK, identity=identity)
    return next(iter(await by_ids(transaction, [user_id])), None)


async def make_room(transaction: Transaction, service_type: str) -> None:
    """Free the place of a user that was deleted."""
    await transaction.execute(_MAKE_ROOM, service_type=service_type)
