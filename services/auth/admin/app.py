"""The assembly of user management and the console; a deployment without admin keys has neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from services.auth.admin import api
from services.auth.admin.access.admin_keys import ADMIN_KEYS, AdminKeys
from services.auth.admin.access.sessions import SESSIONS, Sessions
from services.auth.admin.access.wrong_keys import WRONG_KEYS, WrongKeys
from services.auth.admin.console import pages, views
from services.auth.admin.console.assets import ASSETS, Assets
from services.auth.admin.console.gateways import GATEWAYS, Gateways
from services.auth.admin.console.overview import OVERVIEWS, Overviews
from services.auth.audit.log import AUDIT_LOG, AuditLog
from services.auth.audit.refusals import REFUSALS, Refusals
from services.auth.connections import Connections
from services.auth.devices.operators import DEVICE_ADMIN, DeviceAdmin
from services.auth.limits.services import Limits
from services.auth.settings import SERVICE_TYPES, SETTINGS
from services.auth.standing.changes import Changes
from services.auth.usage.costs import COSTS, Costs
from services.auth.usage.requests import REQUESTS, Requests
from services.auth.usage.services import USAGE, Usage
from services.auth.usage.totals import TotalBudgets
from services.auth.users.operators import USER_ADMIN, UserAdmin
from services.auth.users.spending import SPENDING, Spending
from shared.service.app import Apps
from shared.service.health import Health
from shared.stores.postgres import Database

OPERATIONS = [*api.OPERATIONS, *views.OPERATIONS]

#: Sums over the ledger have their own connections and may take longer than a request.
_REPORT_CONNECTIONS, _REPORT_SECONDS = 2, 30.0


def install(apps: Apps, admin_keys: AdminKeys) -> None:
    """Add the collaborators that open nothing."""
    apps.put(ADMIN_KEYS, admin_keys)
    apps.put(ASSETS, Assets())
    for app in apps.all:
        pages.install(app)


async def open_admin(
    stack: AsyncExitStack,
    apps: Apps,
    connections: Connections,
    *,
    changes: Changes,
    health: Health,
    limits: Limits,
    rejections: Mapping[str, Callable[[], dict[str, int]]],
    on_tier: Callable[[str], None] | None,
) -> None:
    """Make the collaborators of the handlers, and start their background work.

    :param rejections: by the name of a verification, its counts of rejections by step, for the overview.
    :param on_tier: called with the id of each user whose tier has changed.
    """
    settings, service_types, admin_keys = apps.main[SETTINGS], apps.main[SERVICE_TYPES], apps.main[ADMIN_KEYS]
    database, redis, registry = connections.database, connections.redis, connections.registry
    reports = await stack.enter_async_context(
        Database.connect(
            settings.database_url.get_secret_value(),
            max_size=_REPORT_CONNECTIONS,
            timeout=_REPORT_SECONDS,
            state=database.state,
        )
    )
    spending = Spending(database, redis, service_types)
    users = UserAdmin(database, spending, changes, service_types, on_tier=on_tier)
    usage = Usage(database, reports, users, service_types)
    gateways = Gateways(
        connections.session, settings.gateway_url, settings.gateway_metrics_urls, settings.gateway_catalogue_url
    )
    refusals = Refusals(database)
    stack.push_async_callback(usage.close)
    await stack.enter_async_context(refusals.running(registry))
    apps.put(AUDIT_LOG, AuditLog(database))
    apps.put(SESSIONS, Sessions(redis, admin_keys, settings.challenge_secrets()))
    apps.put(REFUSALS, refusals)
    apps.put(WRONG_KEYS, WrongKeys(limits, refusals, registry))
    apps.put(SPENDING, spending)
    apps.put(USER_ADMIN, users)
    apps.put(DEVICE_ADMIN, DeviceAdmin(database, changes, reports))
    apps.put(USAGE, usage)
    apps.put(REQUESTS, Requests(database))
    apps.put(COSTS, Costs(reports))
    apps.put(GATEWAYS, gateways)
    apps.put(
        OVERVIEWS, Overviews(health, gateways, users, usage, TotalBudgets(redis, usage, service_types), rejections)
    )
