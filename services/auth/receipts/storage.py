"""The SQL of receipts. A job claims a receipt before it renews it: until the claim ends, no other job takes it.

Every function raises ``DatabaseUnavailable``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shared.stores.postgres import Database, Query

#: Seconds that a claim lasts, if its job does not end it.
CLAIM = 600


@dataclass(frozen=True, slots=True)
class Claimed:
    """A receipt that is due. ``until`` names the claim. An imported device may lack ``bundle_id``."""

    key_id: str
    bundle_id: str | None
    receipt: bytes
    until: datetime


@dataclass(frozen=True, slots=True)
class Settled:
    """The outcome for a receipt. ``due_at`` is the Unix time at which it is due again; None for never.

    ``receipt`` and ``risk_metric`` are None unless Apple renewed it.
    """

    due_at: float | None
    fault: str | None = None
    receipt: bytes | None = None
    risk_metric: int | None = None


_CLAIM = Query.text(
    """
    update devices set receipt_due_at = now() + make_interval(secs => :seconds)
    where key_id in (
        select key_id from devices
        where receipt_due_at <= now() and receipt is not null and revoked_at is null
        order by receipt_due_at limit :limit for update skip locked
    )
    returning key_id, bundle_id, receipt, receipt_due_at as until
    """
)
# the time has changed if another job has claimed the receipt, or the device has attested again
_SETTLE = Query.text(
    """
    update devices set
        receipt_due_at = to_timestamp(cast(:due_at as double precision)),
        receipt_fault = :fault,
        receipt = coalesce(:receipt, receipt),
        risk_metric = coalesce(:risk_metric, risk_metric),
        risk_metric_at = case when cast(:risk_metric as integer) is null then risk_metric_at else now() end
    where key_id = :key_id and receipt_due_at = :until
    """
)
_LEFT = Query.text(
    "select count(*) as due from devices where receipt_due_at <= now() and receipt is not null and revoked_at is null"
)


async def claim(database: Database, *, limit: int) -> list[Claimed]:
    """Claim the receipts that have been due longest.

    :raises DatabaseUnavailable: PostgreSQL could not be asked; what was claimed is due again when the claim ends.
    """
    # if it is repeated, the receipts that the first try claimed wait for the end of that claim
    return [Claimed(**row) for row in await database.fetch(_CLAIM, seconds=CLAIM, limit=limit)]


async def left(database: Database) -> int:
    """The number of receipts that are due and not claimed."""
    return int((await database.fetch(_LEFT))[0]["due"])


async def settle(database: Database, claimed: Claimed, settled: Settled) -> bool:
    """Write the outcome for a receipt, and end the claim.

    :returns: False if the claim had ended before.
    :raises DatabaseUnavailable: whether it was written is unknown.
    """
    return bool(
        await database.execute(
            _SETTLE,
            key_id=claimed.key_id,
            until=claimed.until,
            due_at=settled.due_at,
            fault=settled.fault,
            receipt=settled.receipt,
            risk_metric=settled.risk_metric,
        )
    )
