"""``mlpa prune``: deletes what is older than the settings say."""

from __future__ import annotations

import asyncio
import time

import click

from services.auth.settings import AuthSettings
from services.cli.ledger import TIMEOUT_SECONDS, keep_days, prune_rows
from shared.errors import DependencyUnavailable
from shared.stores.postgres import Database, Query

_BATCH = 5000
#: Days of the ledger that are made ahead, and seconds for a table that somebody else holds.
_AHEAD, _WAIT = 7, 60.0
_AUDIT_LOG = Query.text(
    """
    delete from audit_log where id in (
        select id from audit_log where at < now() - make_interval(days => :days) order by at limit :batch)
    """
)
# A revoked key stays refused
_DEVICES = Query.text(
    """
    delete from devices where key_id in (
        select key_id from devices where revoked_at is null
            and coalesce(last_used_at, created_at) < now() - make_interval(days => :days) limit :batch)
    """
)


#: Days for which it is known which FxA tokens of an identity without users are too old: none lives nearly as long.
_TOO_OLD_KEPT = 30
# FxA also reports accounts that were never here. An erased one had users until then, and its generation may have
# changed. Blocked ones stay
_IDENTITIES = Query.text(
    """
    delete from identities where identity in (
        select identity from identities as i where blocked_at is null
            and greatest(created_at, to_timestamp(tokens_from_ms / 1000.0),
                (select erased_at from erasures where digest = i.identity)) < now() - make_interval(days => :days)
            and not exists (select from users where users.identity = i.identity) limit :batch for update skip locked)
    """
)


@click.command()
def prune() -> None:
    """Delete what is older than the settings say.

    LEDGER_KEPT_DAYS, AUDIT_LOG_KEPT_DAYS and DEVICE_UNUSED_DAYS; 0 keeps for ever. Also what FxA told 30 days ago of
    accounts without users. Run it every night, as the tables' owner.
    """
    try:
        done = asyncio.run(_prune(AuthSettings.lenient()))
    except DependencyUnavailable as error:
        raise click.ClickException(f"PostgreSQL: {error.reason}; what was deleted stays so") from error
    click.echo(", ".join(f"{number} {what}" for what, number in done.items()))


async def _prune(settings: AuthSettings) -> dict[str, int]:
    url = settings.database_url.get_secret_value()
    done = {"ledger days": 0, "ledger rows": 0}
    if days := settings.ledger_kept_days:
        done["ledger days"] = (await keep_days(url, _AHEAD, days, _WAIT)).dropped
        done["ledger rows"] = await prune_rows(url, time.time() - days * 86_400)
    async with Database.connect(url, max_size=1, timeout=TIMEOUT_SECONDS) as database:
        done["audit entries"] = await _delete(database, _AUDIT_LOG, settings.audit_log_kept_days)
        done["devices"] = await _delete(database, _DEVICES, settings.device_unused_days)
        done["identities"] = await _delete(database, _IDENTITIES, _TOO_OLD_KEPT)
    return done


async def _delete(database: Database, query: Query, days: int) -> int:
    deleted, last = 0, _BATCH if days else 0
    while last == _BATCH:
        last = await database.execute(query, days=days, batch=_BATCH)
        deleted += last
    return deleted
