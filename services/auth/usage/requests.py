"""Requests of all users, newest first: those that were admitted, from the ledger, and samples of those refused.

They are found by request id, user, model, service type, code or time, in a bounded part of the two tables, so that no
search is slow; the next page continues where a page ended.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from datetime import UTC, datetime

import msgspec
from aiohttp import web

from services.auth import pagination
from shared.domain.outcome import Outcome
from shared.stores.postgres import Database, Query

#: Rows of each table that one page looks through.
_SCANNED = 10_000
#: Later than any request.
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)
_OUTCOMES = {outcome.value for outcome in Outcome}
#: The criteria that have an index.
_INDEXED = ("request_id", "user_id")

Key = tuple[datetime, str]
"""The place of a request: its time, and its id among those of one time."""

#: By table: the columns of a request, and that of its time.
_TABLES = {
    "ledger": (
        "admitted_at as at, id, request_id, user_id, service_type, model, outcome as code, '' as reason, "
        "false as refused, purpose, prompt_tokens, completion_tokens, cost_nano, settled_at - admitted_at as took",
        "admitted_at",
    ),
    "refusals": (
        "at, id, request_id, user_id, service_type, model, code, reason, true as refused, 'none' as purpose, "
        "0 as prompt_tokens, 0 as completion_tokens, 0 as cost_nano, interval '0' as took",
        "at",
    ),
}


def _query(table: str, indexed: str) -> Query:
    columns, at = _TABLES[table]
    where = f"{indexed} = :sought and" if indexed else ""
    return Query.text(
        f"""
        with scanned as materialized (
            select {columns} from {table} where {where} ({at}, id) < (:at, :id)
            order by {at} desc, id desc limit :scan)
        select ending.*, row.* from (
            select count(*) as scanned, min(at) as last_at,
                   (select id from scanned order by at, id limit 1) as last_id from scanned) as ending
        left join lateral (
            select * from scanned where (:request_id = '' or request_id = :request_id)
                and (:user_id = '' or user_id = :user_id)
                and (:model = '' or model = :model) and (:service_type = '' or service_type = :service_type)
                and (:code = '' or code = :code)
            order by at desc, id desc limit :limit) as row on true
        """  # noqa: S608  ours
    )


#: By table, and by the column that an index finds.
_QUERIES = {(table, indexed): _query(table, indexed) for table in _TABLES for indexed in (*_INDEXED, "")}


_CODES = Query.text(
    """
    select distinct code from (select code from refusals order by at desc, id desc limit :scan) as newest order by code
    """
)


class Sought(msgspec.Struct, frozen=True):
    """The criteria of a search; empty ones don't count. ``until``: only requests before that time."""

    request_id: str = ""
    user_id: str = ""
    model: str = ""
    service_type: str = ""
    code: str = ""
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A request. ``code`` is its outcome, or the error code of a refused one, whose ``reason`` is in words."""

    at: datetime
    id: str
    request_id: str
    user_id: str | None
    service_type: str
    model: str
    code: str
    reason: str
    refused: bool
    purpose: str
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int
    seconds: float

    @property
    def key(self) -> Key:
        return self.at, self.id


_COLUMNS = [field.name for field in fields(RequestRow) if field.name != "seconds"]


@dataclass(frozen=True, slots=True)
class RequestPage:
    """A page of requests. ``looked_back_to``: where the search ended before the page was full; else None."""

    rows: list[RequestRow]
    next_cursor: str | None
    looked_back_to: datetime | None


@dataclass(frozen=True, slots=True)
class _Part:
    """The requests of one table, complete back to ``edge``, or to the table's beginning if that is None."""

    rows: list[RequestRow]
    edge: Key | None


class Requests:
    """Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, sought: Sought, *, limit: int, cursor: str | None = None) -> RequestPage:
        """:raises ForeignCursor: the cursor is not one of this list."""
        before = (sought.until or _LATEST, "")
        if cursor:
            at, row_id = pagination.decode(cursor, 2)
            before = pagination.moment(at), row_id
        refused = sought.code and sought.code not in _OUTCOMES
        admitted = sought.code and not refused
        tables = ["refusals"] if refused else ["ledger"] if admitted else ["ledger", "refusals"]
        parts = await asyncio.gather(*(self._part(table, sought, before, limit) for table in tables))
        edge = max((part.edge for part in parts if part.edge is not None), default=None)
        found = sorted((row for part in parts for row in part.rows), key=lambda row: row.key, reverse=True)
        kept = [row for row in found if edge is None or row.key >= edge]
        rows = kept[:limit]
        if len(kept) > limit:
            edge = rows[-1].key
        return RequestPage(
            rows,
            pagination.encode(edge[0].astimezone(UTC).isoformat(), edge[1]) if edge else None,
            edge[0] if edge and len(rows) < limit else None,
        )

    async def codes(self) -> list[str]:
        """The error codes of the newest refusals."""
        return [row["code"] for row in await self._database.fetch(_CODES, scan=_SCANNED)]

    async def refused(self, user_id: str, *, limit: int) -> list[RequestRow]:
        """The refusals of a user that were kept, newest first."""
        return (await self._part("refusals", Sought(user_id=user_id), (_LATEST, ""), limit)).rows

    async def _part(self, table: str, sought: Sought, before: Key, limit: int) -> _Part:
        given = {name: value for name, value in msgspec.structs.asdict(sought).items() if isinstance(value, str)}
        if any("\0" in value for value in given.values()):
            return _Part([], None)
        indexed = next((name for name in _INDEXED if given[name]), "")
        scan = _SCANNED if any(given[name] for name in given if name != indexed) else limit
        found = await self._database.fetch(
            _QUERIES[table, indexed],
            **given,
            **({"sought": given[indexed]} if indexed else {}),
            at=before[0],
            id=before[1],
            scan=scan,
            limit=limit,
        )
        rows = [
            RequestRow(**{name: row[name] for name in _COLUMNS}, seconds=row["took"].total_seconds())
            for row in found
            if row["id"] is not None
        ]
        if len(rows) == limit:
            return _Part(rows, rows[-1].key)
        return _Part(rows, (found[0]["last_at"], found[0]["last_id"]) if found[0]["scanned"] == scan else None)


REQUESTS = web.AppKey("requests", Requests)
