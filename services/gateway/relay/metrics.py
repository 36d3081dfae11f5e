"""The metrics of all paid operations. No label takes a value that a client can invent."""

from __future__ import annotations

from collections.abc import Iterable

from services.gateway.errors import KEY_REFUSALS, GatewayError, UpstreamKeyRefused, kind_of, kinds
from services.gateway.upstream.routing import RoutingMetrics
from shared.domain.outcome import Outcome
from shared.domain.service_types import ServiceType
from shared.errors import ServiceError
from shared.telemetry.metrics import Registry

OVERHEAD_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

#: The metric reasons of all errors, each with whether the failure is ours.
REASONS = {kind.counted_as: kind.ours for kind in kinds()}

#: The metric reason of a client that left before any of the answer had come.
ABORT_BEFORE_ANSWER = "abort_before_answer"

#: The ends of an admitted request in the metrics of operations.
RESULTS = (Outcome.SUCCESS, Outcome.ERROR, Outcome.ABORT)

Labels = tuple[str, str, str]
"""Model (an exact name of the catalogue, or ``other``), service type, purpose."""


class RelayMetrics:
    """The metrics that paid operations share, declared in ``registry``; at most one per registry."""

    def __init__(self, registry: Registry) -> None:
        self._rejections = registry.counter(
            "chat_request_rejections_total", "Requests answered with an error.", ("reason", "model", "service_type")
        )
        self._availability = registry.counter(
            "chat_availability_total", "Requests, by whether the service did its part.", ("outcome", "reason")
        )
        self.overhead = registry.histogram(
            "gateway_overhead_seconds", "Time that the gateway adds to a request.", (), OVERHEAD_BUCKETS
        )
        self._upstream_refusals = registry.counter(
            "litellm_refusals_total", "Users refused by LiteLLM's own budgets and limits.", ("code",)
        )
        self._key_refusals = registry.counter(
            "litellm_key_refusals_total",
            "Requests that LiteLLM refused for the gateway's own key: the key itself, or its budget.",
            ("reason",),
        )
        self.routing = RoutingMetrics(registry)
        self.slow_clients = registry.counter("chat_slow_clients_total", "Clients dropped for taking nothing.")
        self._availability.preset(Outcome.SUCCESS, "none")
        self._availability.preset("excluded", Outcome.ABORT)
        self._availability.preset("failure", ABORT_BEFORE_ANSWER)
        for reason, ours in REASONS.items():
            self._availability.preset("failure" if ours else "excluded", reason)
        for code in ("budget_exceeded", "rate_limit_exceeded"):
            self._upstream_refusals.preset(code)
        for reason in KEY_REFUSALS:
            self._key_refusals.preset(reason)

    def preset(self, models: Iterable[str], rows: Iterable[ServiceType]) -> None:
        """Make series of known values, so that queries have a sum before the first request of a kind.

        Every value of every label is there, but not every combination: 30 models, 10 service types and 6 purposes
        would be 100,000 lines. Combinations come with their first request. May be called again when the catalogue has
        grown.
        """
        self.routing.preset((*models, "other"))
        for service_type in (*(row.name for row in rows), "none"):
            for reason in REASONS:
                self._rejections.preset(reason, "other", service_type)

    def rejected(self, error: ServiceError, model: str, service_type: str) -> None:
        """A request was answered with an error, or its stream ended with one."""
        kind = kind_of(error)
        self._rejections.inc(kind.counted_as, model, service_type)
        self._availability.inc("failure" if kind.ours else "excluded", kind.counted_as)

    def refused_upstream(self, error: GatewayError) -> None:
        """LiteLLM answered an error, and the client gets this one."""
        if isinstance(error, UpstreamKeyRefused):
            self._key_refusals.inc(error.reason)
        elif error.code in ("budget_exceeded", "rate_limit_exceeded"):
            self._upstream_refusals.inc(error.code)

    def succeeded(self) -> None:
        self._availability.inc(Outcome.SUCCESS, "none")

    def left(self, *, waiting: bool) -> None:
        """The client has left.

        :param waiting: it had sent its request and got nothing of an answer, which may have taken too long.
        """
        if waiting:
            self._availability.inc("failure", ABORT_BEFORE_ANSWER)
        else:
            self._availability.inc("excluded", Outcome.ABORT)
