"""The exporters of Redis and PostgreSQL get what the rules ask, with the rights of ``mlpa_monitor`` and no others."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from services.local.postgres import PostgresServer
from services.local.process import Process, Program, answers, free_port
from services.local.valkey import ValkeyServer
from tests.deploy.test_roles import run_roles, server, valkey

__all__ = ["server", "valkey"]

RULES = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "prometheus" / "rules.yml").read_text())
#: A metric of auth.
OURS = {"redis_changes_pending"}
#: Of a replica and of its primary alone.
OF_REPLICAS = {"redis_master_link_up", "redis_connected_slave_lag_seconds"}


def asked(prefix: str) -> set[str]:
    """The metrics of an exporter that the rules name."""
    expressions = " ".join(rule["expr"] for group in RULES["groups"] for rule in group["rules"])
    return set(re.findall(rf"\b{prefix}_[a-z_]+\b", expressions)) - OURS


@contextmanager
def scraped(name: str, folder: Path, **environment: str) -> Iterator[str]:
    """The metrics page of an exporter of Debian's, and its log beside it."""
    program = shutil.which(f"prometheus-{name}")
    if program is None:
        pytest.skip(f"Debian's package prometheus-{name} is not installed")
    url = f"http://127.0.0.1:{(port := free_port())}"
    argv = (program, f"--web.listen-address=127.0.0.1:{port}")
    exporter = Process(Program(name, argv, env=environment), folder / "exporter.log")
    exporter.start()
    try:
        exporter.wait_ready(lambda: answers(f"{url}/metrics"))
        with urlopen(f"{url}/metrics") as response:
            yield response.read().decode()
    finally:
        exporter.stop()


def test_the_exporter_of_redis_has_what_the_rules_ask(valkey: ValkeyServer, tmp_path: Path) -> None:
    environment = {
        "REDIS_ADDR": f"redis://127.0.0.1:{valkey.port}",
        "REDIS_USER": "mlpa_monitor",
        "REDIS_PASSWORD": "MONITOR",
        "REDIS_EXPORTER_CONFIG_COMMAND": "-",
    }
    with scraped("redis-exporter", tmp_path, **environment) as page:
        assert re.search(r"^redis_up 1$", page, re.MULTILINE)
        found = set(re.findall(r"^(redis_\w+)[ {]", page, re.MULTILINE))
    assert asked("redis") > OF_REPLICAS
    assert asked("redis") - OF_REPLICAS - found == set()


def test_the_exporter_of_postgresql_has_what_the_rules_ask(server: PostgresServer, tmp_path: Path) -> None:
    assert run_roles(server).returncode == 0
    environment = {
        "DATA_SOURCE_URI": f"127.0.0.1:{server.port}/app_attest?sslmode=disable",
        "DATA_SOURCE_USER": "mlpa_monitor",
        "DATA_SOURCE_PASS": "mlpa_monitor",
    }
    with scraped("postgres-exporter", tmp_path, **environment) as page:
        assert re.search(r"^pg_up 1$", page, re.MULTILINE)
        found = set(re.findall(r"^(pg_\w+)[ {]", page, re.MULTILINE))
    assert len(asked("pg")) >= 3
    assert asked("pg") - found == set()
