"""Counters that arrive out of order, and pools of service types"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column(
        "devices",
        sa.Column(
            "counters_taken",
            sa.BigInteger(),
            server_default="-1",
            nullable=False,
            comment="64 bits: whether the counter that is so much lower was used",
        ),
    )
    op.create_table(
        "pools",
        sa.Column("pool", sa.Text(collation="C"), nullable=False),
        sa.Column("service_types", sa.Text(), server_default="", nullable=False, comment="sorted, comma-separated"),
        sa.Column("users", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("pool"),
    )


def downgrade() -> None:
    op.drop_table("pools")
    op.drop_column("devices", "counters_taken")
