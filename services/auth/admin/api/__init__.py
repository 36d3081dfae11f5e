"""The API of operators: users, devices, the audit log, service types, costs."""

from __future__ import annotations

from services.auth.admin.api import audit_views, cost_views, device_views, service_type_views, views

OPERATIONS = [
    *views.OPERATIONS,
    *device_views.OPERATIONS,
    *audit_views.OPERATIONS,
    *service_type_views.OPERATIONS,
    *cost_views.OPERATIONS,
]
