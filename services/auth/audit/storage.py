"""The SQL of the audit log: changes with actor, time, old and new values, and sign-ins.

Every function raises ``DatabaseUnavailable``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.stores.postgres import Database, Query, Transaction


@dataclass(frozen=True, slots=True)
class Actor:
    """The actor of a change: the name of an admin key, and the client's address."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Entry:
    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    source: str | None


_RECORD = Query.text(
    'insert into audit_log (actor, action, subject, old, "new", source) '
    "values (:actor, :action, :subject, :old, :new, :source)"
)
_COLUMNS = 'id, at, actor, action, subject, old, "new", source'
#: Queries of pages, by whether they go to newer entries, and whether they are about some subjects alone.
_PAGES = {
    (newer, about): Query.text(
        f"select {_COLUMNS} from audit_log where {'subject = any(:subjects) and' if about else ''} "  # noqa: S608
        f"{'id > :edge order by id' if newer else 'id < :edge order by id desc'} limit :limit"
    )
    for newer in (True, False)
    for about in (True, False)
}

MOST_ID = 2**63 - 1


async def record(
    where: Database | Transaction,
    actor: Actor,
    action: str,
    subject: str,
    *,
    old: Mapping[str, Any] | None = None,
    new: Mapping[str, Any] | None = None,
) -> None:
    """Write one entry; a change's goes into the transaction of the change."""
    before, after = (None if values is None else json.dumps(values) for values in (old, new))
    await where.execute(
        _RECORD, actor=actor.name, action=action, subject=subject, old=before, new=after, source=actor.source
    )


async def page(
    database: Database, *, limit: int, edge: int = MOST_ID, newer: bool = False, subjects: list[str] | None = None
) -> list[Entry]:
    """Entries with an id below ``edge``, or above it when ``newer``, the nearest first.

    :param subjects: only entries about one of these; None for all.
    """
    about = {} if subjects is None else {"subjects": subjects}
    rows = await database.fetch(_PAGES[newer, subjects is not None], edge=edge, limit=limit, **about)
    return [Entry(**row) for row in rows]
