"""The first tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False, comment="the admin key's name"),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(collation="C"), nullable=False),
        sa.Column("old", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("new", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("source", sa.Text(), nullable=True, comment="address that asked"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_audit_log_at"), "audit_log", ["at"], unique=False)
    op.create_index(op.f("ix_audit_log_subject"), "audit_log", ["subject"], unique=False)
    op.create_table(
        "capacity",
        sa.Column("service_type", sa.Text(), nullable=False),
        sa.Column("users", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("service_type"),
    )
    op.create_table(
        "devices",
        sa.Column("key_id", sa.Text(collation="C"), nullable=False, comment="canonical: standard base64, padded"),
        sa.Column("public_key", postgresql.BYTEA(), nullable=False, comment="X9.62 point, 65 bytes"),
        sa.Column("counter", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "environment",
            sa.Text(),
            nullable=True,
            comment="production or development; null until an imported key is used",
        ),
        sa.Column("bundle_id", sa.Text(), nullable=True),
        sa.Column("bundle_version", sa.Text(), nullable=True),
        sa.Column("validation_category", sa.Integer(), nullable=True),
        sa.Column("receipt", postgresql.BYTEA(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("revoked_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("revoked_reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_table(
        "identities",
        sa.Column("identity", sa.Text(collation="C"), nullable=False),
        sa.Column("blocked_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("blocked_reason", sa.Text(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("identity"),
    )
    op.create_table(
        "ledger",
        sa.Column("id", sa.Text(collation="C"), nullable=False, comment="made by the gateway, unique"),
        sa.Column("request_id", sa.Text(), nullable=False, comment="X-Request-ID, which a client may choose"),
        sa.Column("user_id", sa.Text(collation="C"), nullable=False),
        sa.Column("service_type", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), server_default="none", nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False, comment="nano-dollars"),
        sa.Column("period_seconds", sa.Integer(), nullable=False),
        sa.Column(
            "period_index", sa.BigInteger(), nullable=False, comment="floor(unix time of admission / period_seconds)"
        ),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("admitted_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("settled_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ledger_admitted", "ledger", ["admitted_at"], unique=False)
    op.create_index("ledger_user_admitted", "ledger", ["user_id", sa.literal_column("admitted_at DESC")], unique=False)
    op.create_table(
        "redis_changes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("identity", sa.Text(collation="C"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "revocations",
        sa.Column("jti", sa.Text(collation="C"), nullable=False),
        sa.Column("user_id", sa.Text(collation="C"), nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("revoked_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("jti"),
    )
    op.create_index(op.f("ix_revocations_expires_at"), "revocations", ["expires_at"], unique=False)
    op.create_index(op.f("ix_revocations_user_id"), "revocations", ["user_id"], unique=False)
    op.create_table(
        "users",
        sa.Column("user_id", sa.Text(collation="C"), nullable=False, comment="identity:service_type"),
        sa.Column("identity", sa.Text(collation="C"), nullable=False),
        sa.Column("service_type", sa.Text(), nullable=False),
        sa.Column("budget_tier", sa.Text(), nullable=False, comment="the service type whose money and rates apply"),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "litellm_budget", sa.Text(), nullable=True, comment="the LiteLLM budget that this customer was given"
        ),
        sa.PrimaryKeyConstraint("user_id"),
    )
    op.create_index(op.f("ix_users_identity"), "users", ["identity"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_users_identity"), table_name="users")
    op.drop_table("users")
    op.drop_index(op.f("ix_revocations_user_id"), table_name="revocations")
    op.drop_index(op.f("ix_revocations_expires_at"), table_name="revocations")
    op.drop_table("revocations")
    op.drop_table("redis_changes")
    op.drop_index("ledger_user_admitted", table_name="ledger")
    op.drop_index("ledger_admitted", table_name="ledger")
    op.drop_table("ledger")
    op.drop_table("identities")
    op.drop_table("devices")
    op.drop_table("capacity")
    op.drop_index(op.f("ix_audit_log_subject"), table_name="audit_log")
    op.drop_index(op.f("ix_audit_log_at"), table_name="audit_log")
    op.drop_table("audit_log")
