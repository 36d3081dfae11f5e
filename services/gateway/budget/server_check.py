"""Whether the Redis server is fit to hold budgets: it must not evict keys, and should survive a restart."""

from __future__ import annotations

from typing import Any

import structlog

from services.gateway.budget.wire import Link, ScriptFailed, pack

_log = structlog.get_logger(__name__)


async def warnings(link: Link) -> list[str]:
    """What is wrong with a server's configuration, as log events; unknown (a managed server) counts as fine.

    :raises ConnectionError:
    """
    found = []
    memory = await _info(link, "memory")
    if memory.get("maxmemory_policy", "noeviction") != "noeviction":
        found.append("redis_evicts")
    persistence = await _info(link, "persistence")
    if persistence.get("aof_enabled") == "0" and await _save_points(link) == "":
        found.append("redis_keeps_nothing")
    return found


async def _info(link: Link, section: str) -> dict[str, str]:
    reply: bytes = await link.send(pack("INFO", section))
    lines = (line.partition(":") for line in reply.decode().splitlines())
    return {name: value for name, _, value in lines}


async def _save_points(link: Link) -> str | None:
    """The ``save`` lines; None when the server doesn't tell (CONFIG is often forbidden)."""
    try:
        reply: list[Any] = await link.send(pack("CONFIG", "GET", "save"))
    except ScriptFailed:
        return None
    return reply[1].decode() if len(reply) == 2 else None


async def check(link: Link) -> None:
    """Log the warnings of a server.

    :raises ConnectionError:
    """
    for event in await warnings(link):
        _log.warning(event, advice="set maxmemory-policy noeviction" if event == "redis_evicts" else "turn on AOF")
