"""Declarations in the code: the metrics of started services, and log events."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import unused_port

from services.auth import app as auth
from services.auth.settings import AuthSettings
from services.auth.tokens.key_ring import ensure_key
from services.gateway import app as gateway
from services.gateway.settings import GatewaySettings
from shared.service.app import Apps
from shared.telemetry.metrics import LATENCY_BUCKETS, Counter, Gauge, Histogram, Registry

ROOT = Path(__file__).parents[2]
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")


@dataclass(frozen=True, slots=True)
class Declared:
    name: str
    kind: str
    labels: tuple[str, ...]
    doc: str


class RecordingRegistry(Registry):
    """A registry that remembers its declarations."""

    def __init__(self) -> None:
        super().__init__()
        self.declared: dict[str, Declared] = {}

    def _note(self, name: str, kind: str, labels: Sequence[str], doc: str) -> None:
        self.declared[name] = Declared(name, kind, tuple(labels), doc)

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
        self._note(name, "counter", labels, doc)
        return super().counter(name, doc, labels)

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
        self._note(name, "gauge", labels, doc)
        return super().gauge(name, doc, labels)

    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS
    ) -> Histogram:
        self._note(name, "histogram", labels, doc)
        return super().histogram(name, doc, labels, buckets)


@asynccontextmanager
async def both_started(
    folder: Path, postgres_url: str, redis_url: str, **environment: Any
) -> AsyncIterator[dict[str, tuple[RecordingRegistry, str]]]:
    """Registry and URL of each service, by name; LiteLLM and FxA are down, which stops neither."""
    nobody = f"http://127.0.0.1:{unused_port()}"
    shared: dict[str, Any] = {
        "_env_file": None,
        "mlpa_debug": True,
        "database_url": postgres_url,
        "redis_url": redis_url,
        "litellm_api_base": nobody,
        "mlpa_signing_keys_dir": folder / "keys",
        "fxa_base_url": f"{nobody}/v1",
        "mlpa_admin_key": "admin-key-of-a-test",
        "master_key": "sk-master-key-of-a-test",
        "mlpa_virtual_key": "sk-test",
        "mlpa_jwks_url": f"{nobody}/jwks",
        "firefox_clients": True,
        "client_metrics": True,
        **environment,
    }
    builders: dict[str, Callable[[Registry], Apps]] = {
        "auth": lambda registry: auth.build_app(AuthSettings(**shared).completed(), registry=registry),
        "gateway": lambda registry: gateway.build_app(GatewaySettings(**shared).completed(), registry=registry),
    }
    ensure_key(folder / "keys")
    started: dict[str, tuple[RecordingRegistry, str]] = {}
    runners: list[web.AppRunner] = []
    try:
        for name, build in builders.items():
            registry = RecordingRegistry()
            apps = build(registry)
            runner = web.AppRunner(apps.main)
            await runner.setup()
            runners.append(runner)
            site = web.TCPSite(runner, "127.0.0.1", port := unused_port())
            await site.start()
            started[name] = registry, f"http://127.0.0.1:{port}"
        yield started
    finally:
        for runner in runners:
            await runner.cleanup()


def log_events() -> dict[str, str]:
    """``{event: level}`` of every line that the services can log."""
    events: dict[str, str] = {}
    for folder in ("services/auth", "services/gateway", "services/cli", "shared"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                    logger = node.func.value
                    if isinstance(logger, ast.Name) and logger.id == "_log" and node.args:
                        for text in _texts(node.args[0], path):
                            events[text] = "error" if node.func.attr == "exception" else node.func.attr
                elif isinstance(node, ast.Call) and ast.unparse(node.func) == "logs.Frequent":
                    events.update(dict.fromkeys(_texts(node.args[1], path), "info"))
    return events


def _texts(node: ast.expr, path: Path) -> Iterator[str]:
    """The texts that an expression can be: a constant, either side of a condition, or a name's constants nearby."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, path)
        yield from _texts(node.orelse, path)
    elif isinstance(node, ast.Name):
        for other in ast.walk(ast.parse(path.read_text())):
            if isinstance(other, ast.Call) and isinstance(other.func, ast.Attribute) and other.func.attr == "append":
                yield from (text for argument in other.args for text in _texts(argument, path))
    else:
        raise ValueError(f"{path}:{node.lineno}: an event that can't be read off the code")  # noqa: TRY004 - not a type
