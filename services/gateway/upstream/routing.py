"""The routing facts in the headers of LiteLLM's answers: backend, retries, time and cost.

All values are clamped: a broken header costs a wrong number in a graph, never a request or an unbounded label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from urllib.parse import urlsplit

import msgspec

from shared.telemetry.metrics import STREAM_BUCKETS, Registry

#: Backends with a label of their own; LiteLLM's configuration has a few.
MAX_BACKENDS = 20
_MAX_COUNT = 100
_MAX_SECONDS = 3600.0
_MAX_USD = Decimal(1000)
_CALL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"[a-z0-9.-]{1,100}")


class RoutingFacts(msgspec.Struct, frozen=True):
    """The facts of one answer.

    ``backend`` is the host that LiteLLM asked; it, ``seconds`` and ``cost`` (USD) may be None.
    """

    backend: str | None
    fallbacks: int
    retries: int
    seconds: float | None
    cost: Decimal | None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> RoutingFacts:
        milliseconds = _number(headers.get("x-litellm-response-duration-ms"))
        return cls(
            _host(headers.get("x-litellm-model-api-base")),
            _count(headers.get("x-litellm-attempted-fallbacks")),
            _count(headers.get("x-litellm-attempted-retries")),
            None if milliseconds is None else min(milliseconds / 1000, _MAX_SECONDS),
            cost_of(headers.get("x-litellm-response-cost")),
        )


def call_id(headers: Mapping[str, str]) -> str | None:
    """LiteLLM's id of the call, under which its logs and its spend logs have it; None if it isn't a plain one."""
    given = headers.get("x-litellm-call-id", "")
    return given if _CALL_ID.fullmatch(given) else None


def cost_of(value: object) -> Decimal | None:
    """USD, from a header's text or a JSON number; None for anything that isn't a finite amount above 0."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        cost = Decimal(str(value))
    except InvalidOperation:
        return None
    return cost if cost.is_finite() and cost > 0 else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _count(text: str | None) -> int:
    return int(min(_number(text) or 0, _MAX_COUNT))


def _host(url: str | None) -> str | None:
    try:
        host = urlsplit(url).hostname if url else None
    except ValueError:
        return None
    return host if host and _HOST.fullmatch(host) else None


class RoutingMetrics:
    """The metrics of routing, declared in ``registry``; at most one per registry."""

    def __init__(self, registry: Registry) -> None:
        self._requests = registry.counter("litellm_requests_total", "Answers, by the host asked.", ("backend",))
        self._fallbacks = registry.counter("litellm_fallbacks_total", "Other models asked instead.", ("model",))
        self._retries = registry.counter("litellm_retries_total", "Times that a model was asked again.", ("model",))
        self._seconds = registry.histogram(
            "litellm_response_seconds", "Time to an answer, as LiteLLM reports it.", ("model",), STREAM_BUCKETS
        )
        self._cost = registry.counter("litellm_cost_usd_total", "Cost, as LiteLLM reports it.", ("model",))
        self._backends: set[str] = set()
        for backend in ("none", "other"):
            self._requests.preset(backend)

    def preset(self, models: Iterable[str]) -> None:
        """Make the series of models, except those of the time, which are many lines each."""
        self._seconds.preset("other")
        for model in models:
            for metric in (self._fallbacks, self._retries, self._cost):
                metric.preset(model)

    def answered(self, facts: RoutingFacts, model: str) -> None:
        """LiteLLM answered a request for ``model``."""
        self._requests.inc(self._backend(facts.backend))
        if facts.fallbacks:
            self._fallbacks.inc(model, by=facts.fallbacks)
        if facts.retries:
            self._retries.inc(model, by=facts.retries)
        if facts.seconds is not None:
            self._seconds.observe(facts.seconds, model)

    def cost(self, usd: Decimal, model: str) -> None:
        """LiteLLM reported the cost of an answer."""
        self._cost.inc(model, by=float(min(usd, _MAX_USD)))

    def _backend(self, host: str | None) -> str:
        if host is None:
            return "none"
        if host not in self._backends:
            if len(self._backends) >= MAX_BACKENDS:
                return "other"
            self._backends.add(host)
        return host
