"""An index of the users by when they were seen last"""

from __future__ import annotations

from migrations.indexes import create_concurrently, drop_concurrently

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    create_concurrently("users_seen", "users", ["last_seen_at", "user_id"])


def downgrade() -> None:
    drop_concurrently("users_seen", "users")
