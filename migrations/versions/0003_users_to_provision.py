"""The users whom LiteLLM does not know rightly yet"""

from __future__ import annotations

import sqlalchemy as sa

from migrations.indexes import create_concurrently, drop_concurrently

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_concurrently(
        "users_to_provision",
        "users",
        ["user_id"],
        postgresql_where=sa.text("litellm_budget is distinct from 'mlpa:' || budget_tier"),
    )


def downgrade() -> None:
    drop_concurrently("users_to_provision", "users")
