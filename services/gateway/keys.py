"""The keys of what handlers find in their app, beside the collaborators of paid operations."""

from __future__ import annotations

from aiohttp import web

from services.gateway.budget.services import Budgets
from services.gateway.catalogue.services import Catalogue
from shared.domain.service_types import ServiceTypes

BUDGETS = web.AppKey("budgets", Budgets)
CATALOGUE = web.AppKey("catalogue", Catalogue)
SERVICE_TYPES = web.AppKey("service_types", ServiceTypes)
