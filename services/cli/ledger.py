"""``mlpa ledger``: deletes old rows, and compares the ledger with Redis and LiteLLM."""

from __future__ import annotations

import asyncio
import json
import time

import click

from services.auth.provisioning.client import LiteLLMAdmin, LiteLLMError
from services.auth.settings import AuthSettings
from services.gateway.ledger.partitions import Kept, keep
from services.gateway.ledger.reconcile import Difference, differences
from services.gateway.ledger.storage import LedgerStorage
from shared.domain.money import nano_to_usd
from shared.errors import DependencyUnavailable
from shared.stores.postgres import Database
from shared.stores.redis import RedisError, connect

_DAY = 86_400
_BATCH = 5000
TIMEOUT_SECONDS = 60.0


@click.group()
def ledger() -> None:
    """The ledger of all requests."""


@ledger.command()
@click.option("--older-than", "days", type=click.IntRange(1), default=90, show_default=True, help="Days.")
def prune(days: int) -> None:
    """Delete rows that are older than so many days.

    At least the longest period of a service type has to be kept.
    """
    settings = AuthSettings.lenient()
    longest = max(row.duration_seconds for row in settings.load_service_types().by_name.values())
    if days * _DAY < longest:
        raise click.BadParameter(f"the longest period has {longest // _DAY} days", param_hint="--older-than")
    try:
        deleted = asyncio.run(prune_rows(settings.database_url.get_secret_value(), time.time() - days * _DAY))
    except DependencyUnavailable as error:
        raise click.ClickException(f"PostgreSQL: {error.reason}; what was deleted stays so") from error
    click.echo(f"deleted {deleted}")


async def prune_rows(url: str, before: float) -> int:
    deleted = 0
    async with Database.connect(url, max_size=1, timeout=TIMEOUT_SECONDS) as database:
        storage = LedgerStorage(database)
        while count := await storage.prune(before, _BATCH):
            deleted += count
    return deleted


@ledger.command()
@click.option("--ahead", type=click.IntRange(1, 366), default=7, show_default=True, help="Days to make ahead.")
@click.option("--older-than", "days", type=click.IntRange(2), help="Drop days that ended so many days ago.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=60,
    show_default=True,
    help="Seconds to wait for a table in use.",
)
def partitions(ahead: int, days: int | None, wait: float) -> None:
    """Make the ledger's tables of the days ahead, and drop old ones. Run it every night, as the tables' owner.

    Rows of a day that nobody made are kept in a table of their own, and moved. Dropping days changes no budget.
    """
    url = AuthSettings.lenient().database_url.get_secret_value()
    try:
        done = asyncio.run(keep_days(url, ahead, days, wait))
    except DependencyUnavailable as error:
        raise click.ClickException(f"PostgreSQL: {error.reason}; what was done stays so, run it again") from error
    click.echo(f"made {done.made}, moved {done.moved} rows, dropped {done.dropped}")


async def keep_days(url: str, ahead: int, days: int | None, wait: float) -> Kept:
    async with Database.connect(url, max_size=1, timeout=TIMEOUT_SECONDS) as database:
        return await keep(database, time.time(), ahead=ahead, older_than=days, wait=wait)


@ledger.command()
def reconcile() -> None:
    """Compare the ledger with Redis, and with LiteLLM's customers.

    One JSON line per user who differs; exit code 1 if there is one. A counter should be the ledger's sum of the
    current period. LiteLLM should not have counted more than the ledger on this UTC day and the one before.
    """
    try:
        found = asyncio.run(_reconcile(AuthSettings.lenient()))
    except DependencyUnavailable as error:
        raise click.ClickException(f"{error.dependency}: {error.reason}") from error
    except RedisError as error:
        raise click.ClickException("redis did not answer") from error
    except LiteLLMError as error:
        raise click.ClickException(f"LiteLLM: {error}") from error
    for one in found:
        line = {
            "user_id": one.user_id,
            "book": one.kind,
            "ledger_usd": nano_to_usd(one.ledger_nano),
            "other_usd": nano_to_usd(one.other_nano),
            "likely_cause": one.likely_cause,
        }
        click.echo(json.dumps(line))
    if found:
        raise SystemExit(1)
    click.echo("no difference", err=True)


async def _reconcile(settings: AuthSettings) -> list[Difference]:
    service_types = settings.load_service_types()
    url = settings.database_url.get_secret_value()
    async with (
        connect(settings.redis_url.get_secret_value(), timeout=5.0) as redis,
        Database.connect(url, max_size=1, timeout=TIMEOUT_SECONDS) as database,
    ):
        if settings.master_key is None or not settings.litellm_provision_users:
            return await differences(database, redis, service_types, None, now=time.time)
        key = settings.master_key.get_secret_value()
        async with LiteLLMAdmin.open(settings.litellm_api_base, key) as admin:
            return await differences(database, redis, service_types, admin.spend, now=time.time)
