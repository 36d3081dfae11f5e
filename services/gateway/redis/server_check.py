"""Whether the Redis server is fit to hold budgets: it must not evict keys, and should survive a restart."""

from __future__ import annotations

from contextlib import suppress

from shared.stores.redis_wire import Link, ScriptFailed, pack
from shared.telemetry import logs

_log = logs.logger("budget")


async def warnings(link: Link) -> list[str]:
    """The faults of a server's configuration, as log events; an unknown one (of a managed server) counts as fine.

    :raises ConnectionError: the connection was lost.
    """
    found = []
    reply: bytes = await link.send(pack("INFO", "memory"))
    policies = [line.partition(":")[2] for line in reply.decode().splitlines() if line.startswith("maxmemory_policy:")]
    if any(policy != "noeviction" for policy in policies):
        found.append("redis_evicts")
    if await _setting(link, "appendonly") == "no" and await _setting(link, "save") == "":
        found.append("redis_keeps_nothing")
    return found


async def _setting(link: Link, name: str) -> str | None:
    """A line of the server's configuration; None if the server doesn't show it."""
    try:
        reply: list[bytes] = await link.send(pack("CONFIG", "GET", name))
    except ScriptFailed:
        return None
    return reply[1].decode() if len(reply) == 2 else None


async def check(link: Link) -> None:
    """Log the warnings of a server, unless the connection is lost."""
    with suppress(ConnectionError):
        for event in await warnings(link):
            _log.warning(event, advice="set maxmemory-policy noeviction" if event == "redis_evicts" else "turn on AOF")
