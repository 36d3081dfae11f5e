"""The metrics of budgets, declared once per process."""

from __future__ import annotations

from services.gateway.budget.refusals import LABELS, UNENFORCED
from shared.domain.service_types import ServiceTypes
from shared.telemetry.metrics import Registry


class BudgetMetrics:
    def __init__(self, registry: Registry, service_types: ServiceTypes) -> None:
        self.spend = registry.counter(
            "budget_spend_usd_total", "USD charged, before late settlements gave some back.", ("service_type",)
        )
        self.overrun = registry.counter("budget_overrun_usd_total", "USD settled above what was reserved.")
        self.refusals = registry.counter("budget_refusals_total", "Requests not admitted.", ("reason", "service_type"))
        self.would_refuse = registry.counter(
            "would_refuse_total",
            "Requests admitted only because their row is not enforced.",
            ("reason", "service_type"),
        )
        self.open = registry.gauge(
            "budget_open_reservations", "Admitted requests of this process that are not settled yet."
        )
        self.unsettled = registry.gauge("budget_unsettled", "Settlements of this process that Redis has not taken yet.")
        self.reaped = registry.counter("budget_reaped_total", "Requests charged whole because their gateway died.")
        self.reaped_usd = registry.counter("budget_reaped_usd_total", "USD charged for requests whose gateway died.")
        self.lowered_usd = registry.counter(
            "budget_lowered_usd_total", "USD of such charges that late settlements gave back."
        )
        self.rebuilds = registry.counter("budget_rebuilds_total", "Users' states built from PostgreSQL.")
        self.epoch_changes = registry.counter(
            "budget_redis_epochs_total", "Redis servers met; a restarted one counts again."
        )
        self.ledger_rows = registry.counter("budget_ledger_rows_total", "Rows written to the ledger.")
        self.ledger_queue = registry.gauge("budget_ledger_queue", "Rows of this process that wait for PostgreSQL.")
        self.outbox_rows = registry.gauge(
            "budget_outbox_rows",
            "Most ledger rows that one shard has in Redis, of the shards that this process sweeps.",
        )
        self.outbox_limit = registry.gauge(
            "budget_outbox_limit_rows",
            "MAX_OUTBOX_ROWS: ledger rows of a shard beyond which nobody is admitted; 0 for no limit.",
        )
        self.outbox_age = registry.gauge(
            "budget_outbox_oldest_seconds",
            "Age of the oldest ledger row in Redis, of the shards that this process sweeps.",
        )
        self.total_limit = registry.gauge(
            "budget_total_limit_usd", "The total budget of a service type.", ("service_type",)
        )
        self.total_spent = registry.gauge(
            "budget_total_spent_usd", "USD settled in this period by all users of the service type.", ("service_type",)
        )
        self.total_reserved = registry.gauge(
            "budget_total_reserved_usd",
            "USD that open requests of all users of the service type may still cost.",
            ("service_type",),
        )
        self.total_known = registry.gauge(
            "budget_total_known",
            "1 while these sums are known; otherwise chats of the service type get 503.",
            ("service_type",),
        )
        self._rows = service_types.by_name
        self._make_series()
        service_types.on_change(self._make_series)

    def _make_series(self) -> None:
        names = tuple(self._rows)
        self.spend.preset_all(names)
        self.refusals.preset_all(LABELS, names)
        self.would_refuse.preset_all(UNENFORCED, names)
