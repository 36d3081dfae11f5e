"""Users of service types without a limit, counted in lanes, so that no newcomer waits for another one"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "capacity_lanes",
        sa.Column("service_type", sa.Text(), nullable=False),
        sa.Column("lane", sa.SmallInteger(), nullable=False),
        sa.Column("users", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("service_type", "lane"),
    )


def downgrade() -> None:
    op.execute(
        "insert into capacity as c select service_type, sum(users) from capacity_lanes group by 1"
        " on conflict (service_type) do update set users = c.users + excluded.users"
    )
    op.drop_table("capacity_lanes")
