"""A Redis Cluster on this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

from services.local.process import ProcessError, free_port
from services.local.valkey import ValkeyServer

CLUSTER_SLOTS = 16_384


class ValkeyCluster:
    """A Redis Cluster of three masters on 127.0.0.1."""

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
        self._wait()

    def mend(self) -> None:
        """Start the nodes that are down, block until the cluster is complete, and empty it."""
        for node in self.nodes:
            if not node.process.running:
                node.start()
        self._wait()
        for node in self.nodes:
            with node.client() as client:
                client.config_set("cluster-require-full-coverage", "yes")
                client.flushall()
                client.script_flush()

    def _wait(self) -> None:
        """Block until all nodes say that the cluster is complete, and have the same map of it."""
        deadline = time.monotonic() + 20
        while not all(self._whole(node) for node in self.nodes) or len(set(map(self._map, self.nodes))) > 1:
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

    def _map(self, node: ValkeyServer) -> str:
        with node.client() as client:
            slots = client.execute_command("CLUSTER", "SLOTS")
        return str(sorted((first, last, owner[1]) for first, last, owner, *_ in slots))


def cluster_options() -> dict[str, str]:
    """The options of a node of a cluster."""
    return {"cluster-enabled": "yes", "cluster-port": str(free_port()), "cluster-node-timeout": "2000"}
