"""The figures of a process, against the system's own."""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer

from shared.telemetry.metrics import Registry
from shared.telemetry.process import LAG_EVERY, loop_lag, process_metrics


def shown(registry: Registry) -> dict[str, float]:
    lines = registry.render().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_memory_processor_time_and_descriptors_are_those_of_this_process() -> None:
    registry = Registry()
    process_metrics(registry)
    before = shown(registry)
    held = mmap.mmap(-1, 32 * 2**20)  # pages of its own, not what Python has left over
    held.write(os.urandom(len(held)))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = shown(registry)
    for descriptor in opened:
        os.close(descriptor)
    assert after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"] > len(held) / 2
    assert after["process_open_fds"] - before["process_open_fds"] == 20
    assert after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"] >= 0.05
    assert after["process_max_fds"] >= after["process_open_fds"]
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    assert 0.8 < after["process_resident_memory_bytes"] / resident < 1.2
    assert time.time() - 60 < after["process_start_time_seconds"] <= time.time()


async def test_a_loop_that_is_held_up_shows_it_and_an_idle_one_does_not() -> None:
    registry = Registry()
    app = web.Application()
    app.cleanup_ctx.append(loop_lag(registry))
    async with TestServer(app):
        await asyncio.sleep(0)  # the look is due in LAG_EVERY
        time.sleep(LAG_EVERY + 0.6)  # noqa: ASYNC251 - this is the stall
        async with asyncio.timeout(5):
            while not shown(registry)["event_loop_lag_seconds_count"]:  # noqa: ASYNC110 - the loop is what is measured
                await asyncio.sleep(0.01)
        stalled = shown(registry)
        assert stalled["event_loop_lag_seconds_sum"] > 0.5
        assert stalled['event_loop_lag_seconds_bucket{le="0.5"}'] == 0
        async with asyncio.timeout(5):
            while shown(registry)["event_loop_lag_seconds_count"] < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert shown(registry)["event_loop_lag_seconds_sum"] - stalled["event_loop_lag_seconds_sum"] < 0.25
