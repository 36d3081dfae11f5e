"""``mlpa migrate``: the tables of the services."""

from __future__ import annotations

import click
import psycopg2
import sqlalchemy.exc
from alembic.util import CommandError

from shared.service.settings import Settings
from shared.stores import migrate as migration
from shared.stores.revisions import LOCK_SECONDS, revisions


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if the database isn't at the newest revision.")
@click.option("--sql", is_flag=True, help="Write the statements that make the schema from nothing, and run none.")
@click.option("--down", type=click.IntRange(min=1), metavar="N", help="Undo the last N revisions.")
@click.option(
    "--wait", type=click.FloatRange(min=0), default=LOCK_SECONDS, show_default=True, help="Seconds to wait for a lock."
)
def migrate(check: bool, sql: bool, down: int | None, wait: float) -> None:
    """Bring the database to the newest revision."""
    if check + sql + (down is not None) > 1:
        raise click.UsageError("--check, --sql and --down exclude each other")
    url = Settings.lenient().database_url.get_secret_value()
    try:
        if check:
            _check_revision(url)
        elif sql:
            migration.sql(url)
        elif down is not None:
            migration.downgrade(url, f"-{down}", wait=wait)
        else:
            migration.upgrade(url, wait=wait)
    except psycopg2.Error as error:
        raise click.ClickException(f"DATABASE_URL: {str(error).strip()}") from None
    except sqlalchemy.exc.DBAPIError as error:
        raise click.ClickException(f"DATABASE_URL: {str(error.orig).strip()}") from None
    except (migration.MigrationRefused, CommandError) as error:
        raise click.ClickException(str(error)) from None


def _check_revision(url: str) -> None:
    newest, current = revisions()[-1], migration.current(url)
    click.echo(f"the database is at {current or 'no revision'}, the newest is {newest}")
    if current != newest:
        raise SystemExit(1)
