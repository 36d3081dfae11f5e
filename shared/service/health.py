"""Readiness: named checks that run concurrently, each bounded in time; results are kept for a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import DependencyUnavailable
from shared.service.flight import Kept

TIMEOUT = 2.0
KEEP = 1.0


class CheckFailed(Exception):
    """The failure of a check, in its own words: shown in the readiness body, so never a secret.

    ``required``: the service can't serve in this state, although it could without the dependency.
    """

    def __init__(self, message: str, *, required: bool = False) -> None:
        super().__init__(message)
        self.required = required


@dataclass(frozen=True, slots=True)
class Check:
    """A named check. ``probe`` returns if all is well and raises otherwise."""

    name: str
    probe: Callable[[], Awaitable[None]]
    required: bool


class Health:
    """The readiness of a service.

    :param one_of: groups of check names of which one suffices; each becomes a required check of its own.
    """

    def __init__(self, checks: Sequence[Check], *, one_of: dict[str, Sequence[str]] | None = None) -> None:
        self._checks = list(checks)
        self._one_of = one_of or {}
        self._results = Kept(self._run_all, KEEP)

    async def readiness(self, *, draining: bool) -> tuple[int, dict[str, Any]]:
        """``(status, body)`` of the readiness answer."""
        checks = await self._results.get()
        if draining or any(check["required"] and check["status"] == "failed" for check in checks.values()):
            return 503, {"status": "unavailable", "checks": checks}
        failed = any(check["status"] == "failed" for check in checks.values())
        return 200, {"status": "degraded" if failed else "ready", "checks": checks}

    async def _run_all(self) -> dict[str, Any]:
        results = dict(zip((c.name for c in self._checks), await asyncio.gather(*map(_run, self._checks)), strict=True))
        for name, members in self._one_of.items():
            ok = any(results[member]["status"] == "ok" for member in members)
            results[name] = {
                "status": "ok" if ok else "failed",
                "required": True,
                "latency_ms": max(results[member]["latency_ms"] for member in members),
                "error": None if ok else f"none of {', '.join(members)} is there",
            }
        return results


async def _run(check: Check) -> dict[str, Any]:
    started = time.perf_counter()
    error: str | None = None
    required = check.required
    try:
        async with asyncio.timeout(TIMEOUT):
            await check.probe()
    except TimeoutError:
        error = f"no answer within {TIMEOUT:g} s"
    except CheckFailed as failed:
        error = str(failed)
        required = required or failed.required
    except DependencyUnavailable as unavailable:
        error = unavailable.reason
    except Exception as unexpected:  # a check reports anything that a client library raises
        error = type(unexpected).__name__
    return {
        "status": "failed" if error else "ok",
        "required": required,
        "latency_ms": round((time.perf_counter() - started) * 1000, 3),
        "error": error,
    }
