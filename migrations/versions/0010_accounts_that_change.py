"""Tokens that are too old, by the moment of their issue and by generation; deliveries of FxA's events"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column(
        "identities",
        sa.Column("tokens_from_ms", sa.BigInteger(), comment="unix ms; tokens issued in an earlier second are refused"),
    )
    op.add_column("identities", sa.Column("generation", sa.BigInteger(), comment="the highest that its FxA tokens had"))
    op.create_table(
        "fxa_deliveries",
        sa.Column("jti", sa.Text(collation="C"), primary_key=True),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False, index=True),
    )


def downgrade() -> None:
    op.drop_table("fxa_deliveries")
    op.drop_column("identities", "generation")
    op.drop_column("identities", "tokens_from_ms")
