"""The proxy of ``deploy/haproxy`` leads budgets to the primary, also after a failover."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.gateway.budget.services import Budgets
from services.local.process import Process, Program, free_port
from services.local.valkey import ValkeyServer
from shared.errors import DependencyUnavailable
from tests.services.gateway.budget.support import FAST, ask, delivered, opened, principal, total
from tests.support.waiting import until

CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy" / "redis.cfg"
HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed")


@contextmanager
def proxy(folder: Path, port: int, servers: list[ValkeyServer]) -> Iterator[None]:
    """HAProxy with the configuration that is shipped."""
    text = CONFIG.read_text().replace("bind :6379", f"bind 127.0.0.1:{port}")
    for number, server in enumerate(servers):
        text = text.replace(f"redis-{number}:6379", f"127.0.0.1:{server.port}")
    path = folder / "haproxy.cfg"
    path.write_text(text)
    subprocess.run([str(HAPROXY), "-c", "-f", str(path)], check=True, capture_output=True)
    program = Program(name="HAProxy", argv=(str(HAPROXY), "-db", "-f", str(path)), cwd=folder)
    process = Process(program, folder / "haproxy.log")
    process.start()
    try:
        yield
    finally:
        process.kill()


async def _settled(budgets: Budgets) -> bool:
    try:
        budgets.settle(await budgets.admit(ask()), delivered())
    except DependencyUnavailable:
        return False
    return True


async def test_a_failover_behind_the_proxy_is_seen_and_loses_nothing(tmp_path: Path, postgres_url: str) -> None:
    port = free_port()
    with (
        ValkeyServer(tmp_path / "a", free_port()) as primary,
        ValkeyServer(tmp_path / "b", free_port(), options={"replicaof": f"127.0.0.1 {primary.port}"}) as replica,
        proxy(tmp_path, port, [primary, replica]),
        primary.client() as old,
        replica.client() as new,
    ):
        async with opened(f"redis://127.0.0.1:{port}", postgres_url, timings=FAST) as (budgets, database, registry):
            await until(lambda: _settled(budgets))
            await until(lambda: new.info("replication")["master_link_status"] == "up")
            new.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
            old.replicaof("127.0.0.1", str(replica.port))  # type: ignore[no-untyped-call]

            async def served_by_the_new_one() -> bool:
                epoch = budgets._scripts.executor.epoch(0)
                return epoch == new.info("server")["run_id"] and await _settled(budgets)

            await until(served_by_the_new_one)

            async def written() -> bool:
                rows, cost = await total(database)
                return cost == rows * 50_000 == (await budgets.state(principal())).spent_nano

            await until(written)
            assert b"budget_reaped_total 0\n" in registry.render()
