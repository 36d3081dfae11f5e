"""What the console reads"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.indexes import create_concurrently, drop_concurrently

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    create_concurrently("users_created", "users", ["created_at", "user_id"])
    op.create_table(
        "usage_hours",
        sa.Column("hour", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("service_type", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False, comment="nano-dollars"),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "service_type", "outcome"),
        if_not_exists=True,  # an interrupted run of older releases left it behind
    )


def downgrade() -> None:
    drop_concurrently("users_created", "users")
    op.drop_table("usage_hours")
