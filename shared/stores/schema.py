"""The tables, for migrations (``migrations/``). Storage modules write their SQL as text.

Ids are compared by byte (``COLLATE "C"``), so that keyset pagination and prefix search can use the primary key.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB, TIMESTAMP

metadata = sa.MetaData()

Id = sa.Text(collation="C")
Time = TIMESTAMP(timezone=True)
_now = sa.text("now()")

#: App Attest keys. Deleted by an erasure, which keeps a revocation, and by ``mlpa prune``.
devices = sa.Table(
    "devices",
    metadata,
    sa.Column("key_id", Id, primary_key=True, comment="canonical: standard base64, padded"),
    sa.Column("public_key", BYTEA, nullable=False, comment="X9.62 point, 65 bytes"),
    sa.Column("counter", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column(
        "counters_taken",
        sa.BigInteger,
        nullable=False,
        server_default="-1",
        comment="64 bits: whether the counter that is so much lower was used",
    ),
    sa.Column("environment", sa.Text, comment="production or development; null until an imported key is used"),
    sa.Column("bundle_id", sa.Text),
    sa.Column("bundle_version", sa.Text),
    sa.Column("validation_category", sa.Integer),
    sa.Column("receipt", BYTEA),
    sa.Column("created_at", Time, nullable=False, server_default=_now),
    sa.Column("last_used_at", Time),
    sa.Column("revoked_at", Time),
    sa.Column("revoked_reason", sa.Text),
    sa.Column("source_digest", Id, comment="HMAC of the source that enrolled the key"),
    sa.Column("risk_metric", sa.Integer, comment="Apple's count of keys that the device attested lately"),
    sa.Column("risk_metric_at", Time),
    sa.Column("receipt_fault", sa.Text, comment="why there is no newer receipt"),
    sa.Column(
        "receipt_due_at",
        Time,
        server_default=_now,
        comment="when a job may take the receipt next, later while one has it; null: never",
    ),
    sa.Index("devices_created", "created_at", "key_id"),
    sa.Index("devices_source", "source_digest", "created_at"),
    sa.Index(
        "devices_receipts_due",
        "receipt_due_at",
        postgresql_where=sa.text("receipt is not null and revoked_at is null"),
    ),
    sa.Index("devices_revoked", "key_id", postgresql_where=sa.text("revoked_at is not null")),
)

#: Decisions about an identity, in all its service types. A row exists after the first decision.
identities = sa.Table(
    "identities",
    metadata,
    sa.Column("identity", Id, primary_key=True),
    sa.Column("blocked_at", Time),
    sa.Column("blocked_reason", sa.Text),
    sa.Column("created_at", Time, nullable=False, server_default=_now),
    sa.Column("tokens_from_ms", sa.BigInteger, comment="unix ms; tokens issued in an earlier second are refused"),
    sa.Column("generation", sa.BigInteger, comment="the highest that its FxA tokens had"),
    sa.Index("identities_blocked", "identity", postgresql_where=sa.text("blocked_at is not null")),
)

#: Deliveries of FxA's events that were accepted, for as long as they could be sent again.
fxa_deliveries = sa.Table(
    "fxa_deliveries",
    metadata,
    sa.Column("jti", Id, primary_key=True),
    sa.Column("expires_at", Time, nullable=False, index=True),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("user_id", Id, primary_key=True, comment="identity:service_type"),
    sa.Column("identity", Id, nullable=False, index=True),
    sa.Column("service_type", sa.Text, nullable=False),
    sa.Column("budget_tier", sa.Text, nullable=False, comment="the service type whose money and rates apply"),
    sa.Column("created_at", Time, nullable=False, server_default=_now),
    sa.Column("last_seen_at", Time, nullable=False, server_default=_now),
    sa.Column("litellm_budget", sa.Text, comment="the LiteLLM budget that this customer was given"),
    sa.Index(
        "users_to_provision",
        "user_id",
        postgresql_where=sa.text("litellm_budget is distinct from 'mlpa:' || budget_tier"),
    ),
    sa.Index("users_created", "created_at", "user_id"),
    sa.Index("users_seen", "last_seen_at", "user_id"),
    sa.Index("users_tier", "budget_tier", "user_id"),
    sa.Index("users_installs", "user_id", postgresql_where=sa.text("credential_of(user_id) = 'play'")),
)

#: Users per service type, advanced in the transaction that adds or deletes one: the lock that makes max_users exact.
#: Those that entered without a limit are in ``capacity_lanes``; here, deletions may then make a number negative.
capacity = sa.Table(
    "capacity",
    metadata,
    sa.Column("service_type", sa.Text, primary_key=True),
    sa.Column("users", sa.BigInteger, nullable=False, server_default="0"),
)

#: Users that entered while their service type had no limit: spread, so that none waits for the commit of another.
capacity_lanes = sa.Table(
    "capacity_lanes",
    metadata,
    sa.Column("service_type", sa.Text, primary_key=True),
    sa.Column("lane", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("users", sa.BigInteger, nullable=False),
)

#: Identities in any of the service types of a pool. They are counted again when other service types are in it.
pools = sa.Table(
    "pools",
    metadata,
    sa.Column("pool", Id, primary_key=True),
    sa.Column("service_types", sa.Text, nullable=False, server_default="", comment="sorted, comma-separated"),
    sa.Column("users", sa.BigInteger, nullable=False, server_default="0"),
)

#: What a user may beside its tier, until it ends.
exceptions = sa.Table(
    "exceptions",
    metadata,
    sa.Column("user_id", Id, sa.ForeignKey("users.user_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("extra_nano", sa.BigInteger, nullable=False, comment="nano-dollars beside the budget, each period"),
    sa.Column("without_rates", sa.Boolean, nullable=False),
    sa.Column("ends_at", Time, nullable=False, index=True),
    sa.Column("reason", sa.Text),
)

#: Revoked access tokens, until they would have expired anyway.
revocations = sa.Table(
    "revocations",
    metadata,
    sa.Column("jti", Id, primary_key=True),
    sa.Column("user_id", Id, nullable=False, index=True),
    sa.Column("expires_at", Time, nullable=False, index=True),
    sa.Column("revoked_at", Time, nullable=False, server_default=_now),
)

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("at", Time, nullable=False, server_default=_now, index=True),
    sa.Column("actor", sa.Text, nullable=False, comment="the admin key's name"),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", Id, nullable=False, index=True),
    sa.Column("old", JSONB),
    sa.Column("new", JSONB),
    sa.Column("source", sa.Text, comment="address that asked"),
)

#: One row per admitted request. The truth for spend. A partition per UTC day (``mlpa ledger partitions``).
ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("id", Id, primary_key=True, comment="made by the gateway, unique"),
    sa.Column("request_id", sa.Text, nullable=False, comment="X-Request-ID, which a client may choose"),
    sa.Column("user_id", Id, nullable=False),
    sa.Column("service_type", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False, server_default="none"),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost_nano", sa.BigInteger, nullable=False, comment="nano-dollars"),
    sa.Column("period_seconds", sa.Integer, nullable=False),
    sa.Column(
        "period_index",
        sa.BigInteger,
        nullable=False,
        comment="floor(unix time of admission / period_seconds)",
    ),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("admitted_at", Time, primary_key=True),
    sa.Column("settled_at", Time, nullable=False),
    sa.Index("ledger_user_admitted", "user_id", sa.text("admitted_at DESC")),
    sa.Index("ledger_admitted", "admitted_at"),
    sa.Index("ledger_request", "request_id"),
    postgresql_partition_by="RANGE (admitted_at)",
)

#: Samples of refused requests, of the last week. Gateways write them in batches, auth deletes old ones.
refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("at", Time, primary_key=True),
    sa.Column("id", Id, primary_key=True, comment="made by the gateway, unique"),
    sa.Column("request_id", sa.Text, nullable=False, comment="X-Request-ID, which a client may choose"),
    sa.Column("user_id", Id, comment="null before the token was verified"),
    sa.Column("service_type", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False, comment="the error code that the client got"),
    sa.Column("reason", sa.Text, nullable=False, comment="in words, for operators"),
    sa.Index("refusals_user", "user_id", sa.text("at DESC")),
    sa.Index("refusals_request", "request_id"),
)

#: The sums below are kept by triggers, in the statement that writes the ledger's rows (migration 0005).

#: What a user spent on a UTC day: budgets are rebuilt from it.
user_spend = sa.Table(
    "user_spend",
    metadata,
    sa.Column("user_id", Id, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True, comment="of admission, UTC"),
    sa.Column("spent_nano", sa.BigInteger, nullable=False, comment="nano-dollars"),
    sa.Index("user_spend_day", "day", postgresql_using="brin"),
    postgresql_with={"fillfactor": 70},
)

#: What all users of a service type spent in an hour, by shard: total budgets are rebuilt from it.
ledger_totals = sa.Table(
    "ledger_totals",
    metadata,
    sa.Column("service_type", sa.Text, primary_key=True),
    sa.Column("hour", Time, primary_key=True, comment="of admission"),
    sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("lane", sa.SmallInteger, primary_key=True, autoincrement=False, comment="a sum is that of its lanes"),
    sa.Column("spent_nano", sa.BigInteger, nullable=False, comment="nano-dollars"),
    postgresql_with={"fillfactor": 70},
)

#: The ledger by hour, for the console and for reports; it outlives the ledger's rows.
ledger_hours = sa.Table(
    "ledger_hours",
    metadata,
    sa.Column("hour", Time, primary_key=True, comment="of admission"),
    sa.Column("service_type", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("purpose", sa.Text, primary_key=True),
    sa.Column("credential", sa.Text, primary_key=True),
    sa.Column("outcome", sa.Text, primary_key=True),
    sa.Column("lane", sa.SmallInteger, primary_key=True, autoincrement=False, comment="a sum is that of its lanes"),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("cost_nano", sa.BigInteger, nullable=False, comment="nano-dollars"),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    postgresql_with={"fillfactor": 70},
)

#: What ``ledger_hours`` replaced: auth of the release before keeps it. The next release drops it.
usage_hours = sa.Table(
    "usage_hours",
    metadata,
    sa.Column("hour", Time, primary_key=True),
    sa.Column("service_type", sa.Text, primary_key=True),
    sa.Column("outcome", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("cost_nano", sa.BigInteger, nullable=False, comment="nano-dollars"),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
)

#: Changes that PostgreSQL took and Redis must take too: written in the transaction of the change, deleted when applied.
redis_changes = sa.Table(
    "redis_changes",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("identity", Id, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("payload", JSONB, nullable=False),
    sa.Column("created_at", Time, nullable=False, server_default=_now),
)

#: Erased identities. Their digest stands for them in ``ledger``, ``user_spend``, ``audit_log``, ``identities`` and
#: ``revocations``.
erasures = sa.Table(
    "erasures",
    metadata,
    sa.Column("digest", Id, primary_key=True, comment="what is kept has this for an identity"),
    sa.Column(
        "fingerprint",
        BYTEA,
        comment="SHA-256 of the identity, for a day: gateways refuse its tokens by it, and rename late rows",
    ),
    sa.Column("sealed", BYTEA, comment="the identity, encrypted, until every store has forgotten it"),
    sa.Column("service_types", ARRAY(sa.Text), nullable=False, server_default="{}"),
    sa.Column("erased_at", Time, nullable=False, server_default=_now),
    sa.Column("forgotten_at", Time, comment="when Redis had nothing of it any more"),
    sa.Column("device_revoked_at", Time),
    sa.Column("device_revoked_reason", sa.Text),
    sa.Index("erasures_fingerprint", "fingerprint", unique=True),
    sa.Index("erasures_open", "erased_at", postgresql_where=sa.text("sealed is not null")),
)
