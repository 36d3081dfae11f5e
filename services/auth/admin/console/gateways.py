"""The state of the gateways by their own report: readiness, counts of refusals, and models with their prices.

A gateway may have been taken over, or another server may answer at its address: no redirect is followed, and
everything that is read, kept or shown has bounds.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import aiohttp
import msgspec
from aiohttp import web

from shared.service import fetch
from shared.service.flight import Kept

_TIMEOUT = 1.5
_KEEP = 3.0
_MAX_PAGE, _MAX_READINESS = 8 * 1024 * 1024, 64 * 1024
_MAX_CHECKS, _MAX_MODELS = 32, 5000
#: A count has no more digits than a double holds exactly. Prometheus' own page (/federate) has an exponent from a
#: million on, and a time behind each value.
_REFUSALS = re.compile(
    rb"^chat_request_rejections_total\{(.{1,2000})\} ([0-9]{1,15}|[0-9]\.?[0-9]{0,15}e\+(?:0[0-9]|1[0-4]))(?=\s|\Z)",
    re.MULTILINE,
)
_REASON = re.compile(rb'(?:^|,)reason="([a-z_]{1,64})"')

_Text = Annotated[str, msgspec.Meta(max_length=200)]


class _Check(msgspec.Struct, frozen=True):
    status: _Text
    required: bool = False
    latency_ms: float = 0
    error: _Text | None = None


class _Readiness(msgspec.Struct, frozen=True):
    status: _Text
    checks: Annotated[dict[_Text, _Check], msgspec.Meta(max_length=_MAX_CHECKS)]


class Model(msgspec.Struct, frozen=True):
    """A model as a gateway knows it. Prices, which come as text, are USD per token."""

    name: _Text
    service_types: list[_Text]
    refused: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    input_usd_per_token: float | None = None
    output_usd_per_token: float | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    reasoning: bool | None = None
    embedding: bool | None = None


class _Catalogue(msgspec.Struct, frozen=True):
    models: Annotated[list[Model], msgspec.Meta(max_length=_MAX_MODELS)]


_catalogue = msgspec.json.Decoder(_Catalogue, strict=False)
_readiness = msgspec.json.Decoder(_Readiness)


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """The state of the gateways. ``status`` is the word of the readiness body, or ``unreachable``; ``refusals`` are
    counted by reason since the processes started, None when no metrics page could be read.
    """

    status: str
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusals: dict[str, int] | None = None


class Gateways:
    """The gateways, asked at most every few seconds, once for all concurrent callers."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, metrics_urls: Sequence[str], catalogue_url: str = ""
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._metrics_urls = tuple(metrics_urls) or (f"{self._url}/metrics",)
        self._catalogue_url = catalogue_url or f"{self._url}/catalogue"
        self._kept = Kept(self._ask, _KEEP)

    async def report(self) -> GatewayReport:
        return await self._kept.get()

    async def models(self) -> list[Model] | None:
        """The models of LiteLLM, by name; None when no gateway tells."""
        try:
            body = await fetch.get(self._session, self._catalogue_url, limit=_MAX_PAGE, timeout=_TIMEOUT)
            return _catalogue.decode(body).models
        except (fetch.NoAnswer, ValueError, RecursionError):
            return None

    async def _ask(self) -> GatewayReport:
        (status, checks), *pages = await asyncio.gather(self._readiness(), *map(self._refusals, self._metrics_urls))
        read = [page for page in pages if page is not None]
        refusals = dict(sum(read, Counter())) if read else None
        return GatewayReport(status, checks, refusals)

    async def _readiness(self) -> tuple[str, dict[str, dict[str, Any]]]:
        url = f"{self._url}/health/readiness"
        try:
            answer = await fetch.ask(self._session, "GET", url, limit=_MAX_READINESS, timeout=_TIMEOUT)
            told = _readiness.decode(answer.body)
        except (fetch.NoAnswer, ValueError, RecursionError):
            return "unreachable", {}  # no server, or not a gateway
        if answer.status not in (200, 503):
            return "unreachable", {}
        return told.status, {name: msgspec.structs.asdict(check) for name, check in told.checks.items()}

    async def _refusals(self, url: str) -> Counter[str] | None:
        try:
            text = await fetch.get(self._session, url, limit=_MAX_PAGE, timeout=_TIMEOUT)
        except fetch.NoAnswer:
            return None
        found: Counter[str] = Counter()
        for labels, value in _REFUSALS.findall(text):
            reason = _REASON.search(labels)
            if reason and (count := int(float(value))):
                found[reason[1].decode()] += count
        return found


GATEWAYS = web.AppKey("gateways", Gateways)
