"""The schema of a database, brought to the newest revision."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

import migrations


def config(url: str) -> Config:
    """Alembic's configuration for one database (``postgresql://`` URL)."""
    folder = Path(migrations.__file__).parent
    settings = Config(str(folder / "alembic.ini"))
    settings.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return settings


def upgrade(url: str, revision: str = "head") -> None:
    """Upgrade; safe to run from many processes at once, since an advisory lock lets one at a time do it.

    :raises sqlalchemy.exc.OperationalError: the database could not be reached.
    """
    command.upgrade(config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Go back to an older revision (``-1`` for the last step)."""
    command.downgrade(config(url), revision)
