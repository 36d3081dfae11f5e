"""Metrics of the process itself: memory, processor, descriptors, and the lag of its event loop.

Each worker of ``--workers`` is a process of its own, and shows its own figures at its own ops port.
Prometheus' client libraries have the same names (prometheus/client_python, prometheus_client/process_collector.py).
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

from aiohttp import web

from shared.service import background
from shared.telemetry.metrics import Histogram, Registry

#: Seconds between two measurements. They show the part of a stall after the next one was due.
LAG_EVERY = 0.25
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_PROC = Path("/proc/self")


def process_metrics(registry: Registry) -> None:
    """Declare the metrics that are read when the page is made; systems other than Linux have fewer."""
    cpu = registry.counter("process_cpu_seconds_total", "Processor time of this process, of users and system.")
    start = registry.gauge("process_start_time_seconds", "Unix time at which this process was made ready.")
    most = registry.gauge("process_max_fds", "Limit of open descriptors.")
    registry.read(cpu, time.process_time)
    start.set(time.time())
    registry.read(most, lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if _PROC.exists():
        memory = registry.gauge("process_resident_memory_bytes", "Memory of this process that is in RAM.")
        open_now = registry.gauge("process_open_fds", "Open descriptors.")
        registry.read(memory, _resident)
        registry.read(open_now, _descriptors)


def _resident() -> float:
    return int((_PROC / "statm").read_text().split()[1]) * resource.getpagesize()


def _descriptors() -> float:
    """Linux 6.2 and later give the number as the folder's size; to list thousands takes 20 ms of the event loop."""
    return (_PROC / "fd").stat().st_size or sum(1 for _ in (_PROC / "fd").iterdir())


def loop_lag(registry: Registry) -> Callable[[web.Application], AsyncIterator[None]]:
    """For ``cleanup_ctx``: measure how late the event loop is, as long as the app runs."""
    lag = registry.histogram("event_loop_lag_seconds", "How late the event loop ran what was due.", buckets=LAG_BUCKETS)

    async def measuring(_app: web.Application) -> AsyncIterator[None]:
        async with background.running(registry, loop_lag=partial(_measure, lag)):
            yield

    return measuring


async def _measure(lag: Histogram) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_EVERY
        await asyncio.sleep(LAG_EVERY)
        lag.observe(max(0.0, loop.time() - due))
