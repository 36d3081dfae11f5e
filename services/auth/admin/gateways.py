"""What the gateways say of themselves: readiness, and what they refused."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_TIMEOUT = 1.5
_KEEP = 3.0
_MAX_BYTES = 8 * 1024 * 1024
_REFUSALS = re.compile(rb"^chat_request_rejections_total\{(.*)\} ([0-9]+)\b", re.MULTILINE)
_REASON = re.compile(rb'(?:^|,)reason="([a-z_]+)"')


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """``status`` is the word of the readiness body, or ``unreachable``. ``refusals`` by reason, since the processes
    started; None when no metrics page could be read."""

    status: str
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusals: dict[str, int] | None = None


class Gateways:
    """Asked at most every few seconds, once for all who want to know."""

    def __init__(self, session: aiohttp.ClientSession, url: str, metrics_urls: Sequence[str]) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._metrics_urls = tuple(metrics_urls) or (f"{self._url}/metrics",)
        self._kept: GatewayReport | None = None
        self._kept_until = 0.0
        self._asking: asyncio.Task[GatewayReport] | None = None

    async def report(self) -> GatewayReport:
        if self._kept is not None and time.monotonic() < self._kept_until:
            return self._kept
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> GatewayReport:
        (status, checks), *pages = await asyncio.gather(self._readiness(), *map(self._refusals, self._metrics_urls))
        read = [page for page in pages if page is not None]
        refusals = dict(sum(read, Counter())) if read else None
        self._kept, self._kept_until = GatewayReport(status, checks, refusals), time.monotonic() + _KEEP
        return self._kept

    async def _readiness(self) -> tuple[str, dict[str, dict[str, Any]]]:
        try:
            async with asyncio.timeout(_TIMEOUT), self._session.get(f"{self._url}/health/readiness") as response:
                body = await response.json()
                return str(body["status"]), {str(name): dict(check) for name, check in body["checks"].items()}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return "unreachable", {}  # nothing there, or something else than a gateway

    async def _refusals(self, url: str) -> Counter[str] | None:
        try:
            async with asyncio.timeout(_TIMEOUT), self._session.get(url) as response:
                if response.status != 200:
                    return None
                text = await response.content.read(_MAX_BYTES)
                while not response.content.at_eof() and len(text) < _MAX_BYTES:
                    text += await response.content.read(_MAX_BYTES - len(text))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        found: Counter[str] = Counter()
        for labels, value in _REFUSALS.findall(text):
            reason = _REASON.search(labels)
            if reason and int(value):
                found[reason[1].decode()] += int(value)
        return found
