"""User management and the console, put together; only where there are admin keys."""

from __future__ import annotations

from contextlib import AsyncExitStack

import aiohttp

from services.auth import keys
from services.auth.admin.access.admin_keys import AdminKeys
from services.auth.admin.access.sessions import Sessions
from services.auth.admin.access.wrong_keys import WrongKeys
from services.auth.admin.api import views as api
from services.auth.admin.console import pages, views
from services.auth.admin.console.assets import Assets
from services.auth.admin.console.gateways import Gateways
from services.auth.admin.console.overview import Overviews
from services.auth.audit.refusals import Refusals
from services.auth.devices.operators import DeviceAdmin
from services.auth.limits.services import Limits
from services.auth.settings import AuthSettings
from services.auth.standing.changes import Changes
from services.auth.usage.services import Usage
from services.auth.users.operators import UserAdmin
from services.auth.users.spending import Spending
from shared.app import Apps
from shared.health import Health
from shared.metrics import Registry
from shared.postgres import Database
from shared.redis import Client
from shared.service_types import ServiceTypes

OPERATIONS = [*api.OPERATIONS, *views.OPERATIONS]

#: Sums over the ledger run on connections of their own, and may take longer than a request.
_REPORT_CONNECTIONS, _REPORT_SECONDS = 2, 30.0


def install(apps: Apps, admin_keys: AdminKeys, service_types: ServiceTypes) -> None:
    """What needs nothing opened."""
    apps.put(keys.ADMIN_KEYS, admin_keys)
    apps.put(keys.ASSETS, Assets())
    apps.put(keys.SERVICE_TYPES, service_types)
    for app in (apps.main, apps.ops):
        if app is not None:
            pages.install(app)


async def open_admin(
    stack: AsyncExitStack,
    apps: Apps,
    settings: AuthSettings,
    *,
    database: Database,
    redis: Client,
    session: aiohttp.ClientSession,
    changes: Changes,
    health: Health,
    limits: Limits,
    registry: Registry,
) -> None:
    """Makes the collaborators of the handlers, and starts their background work."""
    service_types = apps.main[keys.SERVICE_TYPES]
    reports = await stack.enter_async_context(
        Database.connect(
            settings.database_url.get_secret_value(), max_size=_REPORT_CONNECTIONS, timeout=_REPORT_SECONDS
        )
    )
    spending = Spending(database, redis, service_types)
    users = UserAdmin(database, spending, changes, service_types)
    usage = Usage(database, reports, users)
    gateways = Gateways(session, settings.gateway_url, settings.gateway_metrics_urls)
    refusals = Refusals(database)
    await stack.enter_async_context(usage.running(registry))
    await stack.enter_async_context(refusals.running(registry))
    apps.put(keys.DATABASE, database)
    apps.put(keys.SESSIONS, Sessions(redis, apps.main[keys.ADMIN_KEYS], settings.challenge_secrets()))
    apps.put(keys.REFUSALS, refusals)
    apps.put(keys.WRONG_KEYS, WrongKeys(limits, refusals, registry))
    apps.put(keys.SPENDING, spending)
    apps.put(keys.USER_ADMIN, users)
    apps.put(keys.DEVICE_ADMIN, DeviceAdmin(database, changes))
    apps.put(keys.USAGE, usage)
    apps.put(keys.OVERVIEWS, Overviews(health, gateways, users, usage))
