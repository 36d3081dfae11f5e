"""The audit log: who changed what, when, from what to what, and who signed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.dialects.postgresql import JSONB

from shared.postgres import Database, Query, Transaction


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: the name of an admin key, and the address that asked."""

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


_JSON = JSONB(none_as_null=True)
_RECORD = Query.text(
    'insert into audit_log (actor, action, subject, old, "new", source) '
    "values (:actor, :action, :subject, :old, :new, :source)",
    old=_JSON,
    new=_JSON,
)
_COLUMNS = 'id, at, actor, action, subject, old, "new", source'
_NEWEST = Query.text(f"select {_COLUMNS} from audit_log where id < :before order by id desc limit :limit")  # noqa: S608
_OF_SUBJECTS = Query.text(
    f"select {_COLUMNS} from audit_log where subject = any(:subjects) and id < :before "  # noqa: S608
    "order by id desc limit :limit"
)

NEWEST = 2**63 - 1


async def record(
    where: Database | Transaction,
    actor: Actor,
    action: str,
    subject: str,
    *,
    old: Mapping[str, Any] | None = None,
    new: Mapping[str, Any] | None = None,
) -> None:
    """Write one entry; a change's goes into the transaction of the change.

    :raises DatabaseUnavailable:
    """
    await where.execute(
        _RECORD, actor=actor.name, action=action, subject=subject, old=old, new=new, source=actor.source
    )


async def page(
    database: Database, *, limit: int, before: int = NEWEST, subjects: list[str] | None = None
) -> list[Entry]:
    """Entries with an id below ``before``, newest first; only those about one of ``subjects``, if given.

    :raises DatabaseUnavailable:
    """
    if subjects is None:
        rows = await database.fetch(_NEWEST, before=before, limit=limit)
    else:
        rows = await database.fetch(_OF_SUBJECTS, before=before, limit=limit, subjects=subjects)
    return [Entry(**row) for row in rows]
