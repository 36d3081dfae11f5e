"""What is known about the risk of a device: its receipt, Apple's metric, the source that enrolled it"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.indexes import create_concurrently, drop_concurrently

revision = "0009"
down_revision = "0008"

_TIME = postgresql.TIMESTAMP(timezone=True)
_DUE = "receipt is not null and revoked_at is null"


def upgrade() -> None:
    for column in (
        sa.Column("source_digest", sa.Text(collation="C")),
        sa.Column("risk_metric", sa.Integer()),
        sa.Column("risk_metric_at", _TIME),
        sa.Column("receipt_fault", sa.Text()),
        sa.Column("receipt_due_at", _TIME, server_default=sa.text("now()")),
    ):
        op.add_column("devices", column, if_not_exists=True)
    create_concurrently("devices_created", "devices", ["created_at", "key_id"])
    create_concurrently("devices_source", "devices", ["source_digest", "created_at"])
    create_concurrently("devices_receipts_due", "devices", ["receipt_due_at"], postgresql_where=sa.text(_DUE))


def downgrade() -> None:
    for name in ("devices_receipts_due", "devices_source", "devices_created"):
        drop_concurrently(name, "devices")
    for column in ("receipt_due_at", "receipt_fault", "risk_metric_at", "risk_metric", "source_digest"):
        op.drop_column("devices", column)
