"""Refused requests, and the lists of users that the console shows by tier, standing and kind"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.indexes import create_concurrently, drop_concurrently

revision = "0011"
down_revision = "0010"

#: Name, table, columns, condition.
_INDEXES = (
    ("users_tier", "users", ["budget_tier", "user_id"], None),
    ("users_installs", "users", ["user_id"], "credential_of(user_id) = 'play'"),
    ("identities_blocked", "identities", ["identity"], "blocked_at is not null"),
    ("devices_revoked", "devices", ["key_id"], "revoked_at is not null"),
)


def upgrade() -> None:
    # Days are written in turn, and a row keeps its day: the smallest index there is finds those of one
    create_concurrently("user_spend_day", "user_spend", ["day"], postgresql_using="brin")
    for name, table, columns, condition in _INDEXES:
        create_concurrently(name, table, columns, postgresql_where=sa.text(condition) if condition else None)
    identifier = sa.Text(collation="C")
    op.create_table(
        "refusals",
        sa.Column("at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("id", identifier, nullable=False, comment="made by the gateway, unique"),
        sa.Column("request_id", sa.Text(), nullable=False, comment="X-Request-ID, which a client may choose"),
        sa.Column("user_id", identifier, comment="null before the token was verified"),
        sa.Column("service_type", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False, comment="the error code that the client got"),
        sa.Column("reason", sa.Text(), nullable=False, comment="in words, for operators"),
        sa.PrimaryKeyConstraint("at", "id"),
        if_not_exists=True,  # an interrupted run of older releases left it behind, with its indexes
    )
    op.create_index("refusals_user", "refusals", ["user_id", sa.text("at DESC")], if_not_exists=True)
    op.create_index("refusals_request", "refusals", ["request_id"], if_not_exists=True)


def downgrade() -> None:
    for name, table, _, _ in _INDEXES:
        drop_concurrently(name, table)
    drop_concurrently("user_spend_day", "user_spend")
    op.drop_table("refusals")
