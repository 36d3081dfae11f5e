"""The revisions of the schema that this code knows.

A service needs nothing else of the migrations, so alembic, whose import takes a fifth of a second, isn't imported here.
"""

from __future__ import annotations

from pathlib import Path

import migrations

#: Seconds to wait for another migration.
LOCK_SECONDS = 60.0


def revisions() -> list[str]:
    """All revisions, the first one first: their files begin with them."""
    folder = Path(migrations.__file__).parent / "versions"
    return sorted(path.name.partition("_")[0] for path in folder.glob("[0-9]*_*.py"))
