"""Enrolled App Attest keys in PostgreSQL. Every function raises ``DatabaseUnavailable``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from services.auth.appattest.assertion import Assertion
from services.auth.appattest.attestation import Attestation
from shared.stores.postgres import Database, Query, Transaction


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled key. ``bundle_id`` and ``environment`` are None for an imported key that was not used yet.

    ``idle`` is the time in seconds since its last use, or since its enrolment. ``receipt_fault`` says why there is no
    newer receipt.
    """

    key_id: str
    public_key: bytes
    counter: int
    bundle_id: str | None
    environment: str | None
    revoked: bool
    idle: float
    validation_category: int | None
    risk_metric: int | None
    receipt_fault: str | None


@dataclass(frozen=True, slots=True)
class ImportedDevice:
    """A key that another deployment has enrolled, from line ``line`` of a file."""

    key_id: str
    public_key: bytes
    counter: int
    environment: str | None = None
    bundle_id: str | None = None
    line: int = 0


class Stored(Enum):
    """The result of storing an attestation."""

    NEW = "new"
    #: The key was enrolled before; of concurrent attempts, all but one get this.
    KNOWN = "known"
    REFUSED = "refused"


_MAX_INTEGER = 2**31 - 1
#: The fault of a receipt that Apple did not sign, or not for this key and app.
FORGED = "forged"
#: The distance below the highest counter at which a late one is still accepted: the bits of ``counters_taken``.
LATE_COUNTERS = 64

_ENROL = Query.text(
    """
    insert into devices
        (key_id, public_key, counter, environment, bundle_id, bundle_version, validation_category, receipt,
         source_digest)
    values (:key_id, :public_key, 0, :environment, :bundle_id, :bundle_version, :validation_category, :receipt,
            :source_digest)
    on conflict (key_id) do update set
        receipt = excluded.receipt,
        environment = coalesce(devices.environment, excluded.environment),
        bundle_id = coalesce(devices.bundle_id, excluded.bundle_id),
        bundle_version = coalesce(excluded.bundle_version, devices.bundle_version),
        validation_category = coalesce(excluded.validation_category, devices.validation_category),
        receipt_due_at = now(),
        last_used_at = now()
      where devices.revoked_at is null and devices.public_key = excluded.public_key
    returning xmax = 0 as new  -- 0 of a row that was inserted: nothing has locked or updated it
    """
)
_FIND = Query.text(
    "select key_id, public_key, counter, bundle_id, environment, revoked_at is not null as revoked, "
    "extract(epoch from now() - coalesce(last_used_at, created_at))::float as idle, "
    "validation_category, risk_metric, receipt_fault from devices where key_id = :key_id"
)
_ADVANCE = Query.text(
    """
    update devices set
        counter = greatest(counter, :counter),
        counters_taken = case
            when :counter >= counter + 64 then 1
            when :counter > counter then (counters_taken << cast(:counter - counter as integer)) | 1
            else counters_taken | (cast(1 as bigint) << cast(counter - :counter as integer))
        end,
        last_used_at = now(),
        bundle_id = coalesce(bundle_id, :bundle_id),
        environment = coalesce(environment, :environment),
        bundle_version = coalesce(:bundle_version, bundle_version),
        validation_category = coalesce(:validation_category, validation_category)
    where key_id = :key_id and revoked_at is null and case
        when :counter > counter then true
        when :counter > counter - :window
            then counters_taken & (cast(1 as bigint) << cast(counter - :counter as integer)) = 0
        else false
      end
    returning key_id
    """
)

_IMPORT = Query.text(
    """
    insert into devices (key_id, public_key, counter, environment, bundle_id)
    select * from unnest(cast(:key_ids as text[]), cast(:public_keys as bytea[]), cast(:counters as bigint[]),
                         cast(:environments as text[]), cast(:bundle_ids as text[]))
    on conflict (key_id) do update set
        counter = greatest(devices.counter, excluded.counter),
        counters_taken = case
            when excluded.counter > devices.counter then -1 else devices.counters_taken end,
        environment = coalesce(devices.environment, excluded.environment),
        bundle_id = coalesce(devices.bundle_id, excluded.bundle_id)
    """
)

_PAGE = Query.text(
    """
    select key_id, public_key, counter, environment, bundle_id from devices
    where key_id > :after and created_at >= to_timestamp(:since) and revoked_at is null
    order by key_id limit :limit
    """
)


def _category(number: int | None) -> int | None:
    """A category that the column can hold. Apple's are small, and all larger ones are equally unknown."""
    return number if number is None else min(number, _MAX_INTEGER)


async def enrol(database: Database, key_id: str, attestation: Attestation, source_digest: str) -> Stored:
    """Store a newly attested key, committed on return. A known key keeps its public key, its counter and its source.

    :returns: REFUSED when the key is revoked.
    :raises DatabaseUnavailable: whether it was stored is unknown.
    """
    row = await database.fetch_one(
        _ENROL,
        key_id=key_id,
        public_key=attestation.public_key_x962,
        environment=attestation.environment,
        bundle_id=attestation.bundle_id,
        bundle_version=attestation.launch.bundle_version,
        validation_category=_category(attestation.launch.validation_category),
        receipt=attestation.receipt,
        source_digest=source_digest,
    )
    if row is None:
        return Stored.REFUSED
    return Stored.NEW if row["new"] else Stored.KNOWN


async def find(database: Database, key_id: str) -> Device | None:
    rows = await database.fetch(_FIND, key_id=key_id)
    return Device(**rows[0]) if rows else None


async def advance_counter(
    database: Database | Transaction, key_id: str, assertion: Assertion, environment: str, *, window: int = 0
) -> bool:
    """Take the counter, by one conditional update that decides between racing assertions.

    :param window: a counter that is not the highest may be taken once while it is above the highest minus this, at most
        ``LATE_COUNTERS``; 0 for none.
    :returns: False when the counter was too low or taken, or the key was revoked meanwhile.
    """
    row = await database.fetch_one(
        _ADVANCE,
        key_id=key_id,
        counter=assertion.counter,
        window=window,
        bundle_id=assertion.bundle_id,
        environment=environment,
        bundle_version=assertion.launch.bundle_version,
        validation_category=_category(assertion.launch.validation_category),
    )
    return row is not None


async def store_imported(database: Database, devices: list[ImportedDevice]) -> None:
    """Store a batch; a known device keeps its larger counter and everything else."""
    newest: dict[str, ImportedDevice] = {}
    for device in devices:
        known = newest.get(device.key_id)
        if known is None or known.counter < device.counter:
            newest[device.key_id] = device
    batch = list(newest.values())
    await database.execute(
        _IMPORT,
        key_ids=[device.key_id for device in batch],
        public_keys=[device.public_key for device in batch],
        counters=[device.counter for device in batch],
        environments=[device.environment for device in batch],
        bundle_ids=[device.bundle_id for device in batch],
    )


async def page(database: Database, *, after: str, since: float, limit: int) -> list[ImportedDevice]:
    """Devices that are not revoked, by key id, in the form in which another deployment takes them over.

    :param after: the key id that the page follows; empty for the first page.
    :param since: Unix time; devices that were enrolled before it are left out.
    """
    rows = await database.fetch(_PAGE, after=after, since=since, limit=limit)
    return [ImportedDevice(**row) for row in rows]
