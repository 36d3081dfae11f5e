"""Redis (or Valkey, or a Redis Cluster), bounded in connections and in time."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError

__all__ = ["CLUSTER_SCHEME", "Client", "RedisError", "check_url", "connect", "harden"]

CLUSTER_SCHEME = "redis+cluster://"

Client = Redis


def check_url(url: str) -> None:
    """:raises ValueError: ``connect`` can't use the URL. The message quotes none of it."""
    url = url.replace(CLUSTER_SCHEME, "redis://", 1)
    try:
        place = parse_url(url)
        # a slash that a password has in the clear ends the authority before its "@"
        usable = ("host" in place or "path" in place) and "@" not in "".join(urlsplit(url)[2:])
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            "must be a redis://, rediss://, unix:// or redis+cluster:// URL;"
            " special characters of a password are percent-encoded"
        )


def connect(url: str, *, timeout: float = 1.0, max_connections: int = 64) -> Client:
    """A client that answers, or raises ``RedisError``, within ``timeout`` seconds; opens connections as needed.

    :param url: ``redis://``, ``rediss://``, ``unix://``, or ``redis+cluster://host:port`` for a Redis Cluster.
    """
    if url.startswith(CLUSTER_SCHEME):
        cluster: Any = RedisCluster.from_url(
            url.replace(CLUSTER_SCHEME, "redis://", 1),
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            max_connections=max_connections,
        )
        return cluster  # type: ignore[no-any-return]  # same commands, no common base class
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        # A connection that the server closed while idle is found out at its first use: once more, at once
        retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        health_check_interval=0,
    )
    return Redis(connection_pool=harden(pool))


def harden(pool: ConnectionPool) -> ConnectionPool:
    """Have a pool's connections raise ``RedisError`` for every fault.

    Writing to a connection that was just reset is a ``RuntimeError`` of uvloop's, which redis-py lets through.
    """
    kind: type[AbstractConnection] = pool.connection_class
    pool.connection_class = type(f"Hardened{kind.__name__}", (_Hardened, kind), {})
    return pool


class _Hardened(AbstractConnection):
    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise ConnectionError("the connection is closed") from error


async def ping(client: Client) -> None:
    """:raises RedisError:"""
    await client.ping()
