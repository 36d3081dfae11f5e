"""The users whom LiteLLM does not know rightly yet"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "users_to_provision",
        "users",
        ["user_id"],
        postgresql_where=sa.text("litellm_budget is distinct from 'mlpa:' || budget_tier"),
    )


def downgrade() -> None:
    op.drop_index("users_to_provision", table_name="users")
