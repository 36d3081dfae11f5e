"""The metrics of chat alone. No label takes a value that a client can invent."""

from __future__ import annotations

from collections.abc import Iterable

from services.gateway.chat.tally import Tally
from services.gateway.relay.metrics import RESULTS, Labels
from shared.domain.outcome import Outcome
from shared.domain.service_types import ServiceType
from shared.telemetry.metrics import STREAM_BUCKETS, Registry

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call", "other")
TOKEN_BUCKETS = (10, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 25000, 50000, 100000)
#: The two sides of a request's tokens.
KINDS = ("prompt", "completion")


class ChatMetrics:
    """The metrics of chat, declared in ``registry``; at most one per registry."""

    def __init__(self, registry: Registry) -> None:
        labels = ("model", "service_type", "purpose")
        self._latency = registry.histogram(
            "chat_completion_latency_seconds", "Admitted chat requests.", ("result", *labels), STREAM_BUCKETS
        )
        self._ttft = registry.histogram("chat_completion_ttft_seconds", "Time to the first event.", ("model",))
        self._tokens = registry.counter("chat_tokens_total", "Tokens, as reported.", ("type", *labels))
        self._per_request = registry.histogram(
            "chat_tokens_per_request", "Tokens of a request, as reported.", ("type", "model"), TOKEN_BUCKETS
        )
        self._tool_calls = registry.counter("chat_tool_calls_total", "Tool calls.", ("model", "service_type"))
        self._finish = registry.counter("chat_finish_reasons_total", "Choices, by their end.", ("reason", "model"))

    def preset(self, models: Iterable[str], rows: Iterable[ServiceType]) -> None:
        models, rows = tuple(models), tuple(rows)
        for model in (*models, "other"):
            self._ttft.preset(model)
            for reason in FINISH_REASONS:
                self._finish.preset(reason, model)
        for kind in KINDS:
            self._per_request.preset(kind, "other")
        for row in rows:
            for result in RESULTS:
                self._latency.preset(result, "other", row.name, "none")
            for purpose in ("none", "other", *row.purposes):
                for kind in KINDS:
                    self._tokens.preset(kind, "other", row.name, purpose)
            self._tool_calls.preset("other", row.name)
            for model in filter(row.allows_model, models):
                self._tool_calls.preset(model, row.name)

    def begun(self, seconds: float, model: str) -> None:
        self._ttft.observe(seconds, model)

    def ended(self, result: Outcome, seconds: float, labels: Labels, tally: Tally) -> None:
        """:param result: one of ``RESULTS``."""
        self._latency.observe(seconds, result, *labels)
        model, service_type, _ = labels
        usage = tally.usage
        if usage is not None:
            for kind, number in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
                self._tokens.inc(kind, *labels, by=number)
                self._per_request.observe(number, kind, model)
        if tally.tools:
            self._tool_calls.inc(model, service_type, by=len(tally.tools))
        for reason in tally.finished.values():
            self._finish.inc(reason if reason in FINISH_REASONS else "other", model)
