"""Exceptions of users: more money or no rates until a moment"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "exceptions",
        sa.Column(
            "user_id", sa.Text(collation="C"), sa.ForeignKey("users.user_id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("extra_nano", sa.BigInteger(), nullable=False, comment="nano-dollars beside the budget, each period"),
        sa.Column("without_rates", sa.Boolean(), nullable=False),
        sa.Column("ends_at", postgresql.TIMESTAMP(timezone=True), nullable=False, index=True),
        sa.Column("reason", sa.Text()),
    )


def downgrade() -> None:
    op.drop_table("exceptions")
