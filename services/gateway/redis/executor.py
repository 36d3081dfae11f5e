"""Runs a script on the node that holds its shard, within a second or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.connection import ConnectionPool
from redis.crc import key_slot

from shared.domain.identity import SHARDS, shard_tag
from shared.errors import DependencyUnavailable
from shared.service.flight import Flight
from shared.state.script import Script, ScriptCall
from shared.stores.dependency import Dependency
from shared.stores.redis import Place, answer_reason, answered, server_pool
from shared.stores.redis_wire import Link, Node, ScriptFailed, observe, pack, pack_script
from shared.telemetry import logs, spans

_log = logs.logger("budget")

Address = tuple[str, int]
#: The script did not run, and may run at once or in a moment: where it was sent next, or with its source.
_AGAIN_SOON = frozenset(("NOSCRIPT", "MOVED", "ASK", "TRYAGAIN", "READONLY"))
#: The server runs no scripts for now, or not this one for want of memory: it did not run.
_STATES = frozenset(
    ("OOM", "MISCONF", "BUSY", "NOREPLICAS", "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "NOPERM")
)
#: Part of an error that a command of a running script caused: what the script did before stays done.
_FROM_WITHIN = "script: "
_PAUSE = 0.05
#: Seconds of one try of readiness, and between two.
_TRY, _AGAIN = 0.7, 0.5
_SLOTS = tuple(key_slot(shard_tag(shard).encode()) for shard in range(SHARDS))


class NotRun(DependencyUnavailable):
    """Redis could not be reached, or refused to begin: the script did certainly not run."""


class Executor:
    """The only way to Redis for budgets.

    ``run`` answers, or raises ``DependencyUnavailable("redis")``, within ``timeout`` seconds; it never hangs, and it
    reconnects by itself. With ``redis+cluster://`` it follows the cluster's slots.
    """

    def __init__(self, url: str, scripts: Sequence[Script], timeout: float) -> None:
        self.state = Dependency("redis")
        self._place = Place.of(url)
        self._cluster = self._place.clustered
        self._scripts, self._timeout = scripts, timeout
        self._nodes: dict[Address, Node] = {}
        self._owners: list[Node] = []
        self._mapping = Flight(self._look)
        self._listeners: list[Callable[[list[int]], None]] = []
        parts = urlsplit(self._place.url)
        self._seed: Address = (parts.hostname or "localhost", parts.port or 6379)
        if not self._cluster:
            self._owners = [self._node(self._seed)] * SHARDS

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, scripts: Sequence[Script], *, timeout: float = 1.0) -> AsyncIterator[Executor]:
        """Opens no connection yet: a gateway also starts while Redis is down, and readiness reports it."""
        executor = cls(url, scripts, timeout)
        try:
            yield executor
        finally:
            await executor._mapping.close()
            for node in executor._nodes.values():
                await node.close()

    def on_epoch(self, listener: Callable[[list[int]], None]) -> None:
        """Call ``listener`` with the shards whose server turns out to be new, at the first connection too."""
        self._listeners.append(listener)

    def epoch(self, shard: int) -> str:
        """The run id of the server that holds a shard; empty while it isn't connected."""
        link = self._owners[shard].link if self._owners else None
        return link.epoch if link is not None else ""

    async def steady_for(self, shard: int) -> float:
        """Seconds for which a shard's server has been connected and has not said that it runs no scripts.

        It is connected now if it isn't.

        :raises NotRun: it could not be.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return (await self._connected(shard)).steady_for
        except (ConnectionError, TimeoutError) as error:
            raise NotRun("redis") from error

    async def can_write(self) -> None:
        """Write a key that expires over the connections that scripts use. One server that takes it suffices.

        :raises NotRun: none took it within two tries.
        """
        for attempt in (1, 2):
            if await self._written():
                self.state.answered()
                return
            if attempt == 1:
                await asyncio.sleep(_AGAIN)
        raise NotRun("redis", reason=self.state.reason or "no answer in time")

    async def _written(self) -> bool:
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(_TRY):
                await self._map()
        writes = {node: shard for shard, node in enumerate(self._owners)}
        return any(await asyncio.gather(*(self._write(node, shard) for node, shard in writes.items())))

    async def _write(self, node: Node, shard: int) -> bool:
        try:
            async with asyncio.timeout(_TRY):
                link = await node.connect()
                await link.send(pack("SET", f"mlpa:{shard_tag(shard)}:health", "1", "EX", "60"))
        except (ConnectionError, TimeoutError):
            self.state.failed(self.state.reason or "no answer in time")
        except ScriptFailed as failure:
            self.state.failed(answer_reason(failure.code))
        else:
            return True
        return False

    def links(self) -> list[Link]:
        """The open links, one per server."""
        return [link for node in self._nodes.values() if (link := node.link) is not None]

    def submit(self, shard: int, call: ScriptCall) -> asyncio.Future[Any] | None:
        """Send at once, without a retry: the reply, or the failures of ``Link.send``. None when not connected."""
        link = self._owners[shard].link if self._owners else None
        if link is None:
            return None
        return link.send(pack_script(call, link.epoch))

    async def run(self, shard: int, call: ScriptCall) -> Any:
        """The script's reply. The epoch that it gets is that of the server that runs it.

        :raises NotRun: not connected, or Redis refused to begin.
        :raises DependencyUnavailable: no answer in time, or the script failed. What it did is unknown.
        """
        with spans.child(f"redis {call.script.name}", "redis"):
            reply = await self._run(shard, call)
        answered(self.state, wrote=call.script.needs_writes)
        return reply

    async def _run(self, shard: int, call: ScriptCall) -> Any:
        link = self._owners[shard].link if self._owners else None
        if link is not None:
            try:
                return await link.send(pack_script(call, link.epoch))
            except ScriptFailed as failure:
                if failure.code not in _AGAIN_SOON:
                    raise self._refused(call.script, failure, link) from failure
            except ConnectionError as error:
                raise DependencyUnavailable("redis") from error
        return await self._run_slowly(shard, call)

    async def _run_slowly(self, shard: int, call: ScriptCall) -> Any:
        """Connect, load or look for the shard's new place first, as long as time is left. Nothing ran so far."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        moving: Node | None = None  # where a slot is being moved to that has left its owner in part
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    link = await (moving.connect() if moving is not None else self._connected(shard))
                if moving is not None:
                    link.send(pack("ASKING")).add_done_callback(observe)
                try:
                    return await _answer(link.send(pack_script(call, link.epoch)), deadline)
                except ScriptFailed as failure:
                    async with asyncio.timeout_at(deadline):
                        if failure.code == "NOSCRIPT":
                            await link.send(pack("SCRIPT", "LOAD", call.script.source))
                        elif failure.code == "ASK" and self._cluster:
                            moving = self._node(_address(failure, link))
                        else:
                            moving = None
                            await self._recover_from(failure, call.script, link)
        except (ConnectionError, TimeoutError) as error:
            raise NotRun("redis") from error

    async def _recover_from(self, failure: ScriptFailed, script: Script, link: Link) -> None:
        """Handle a script's failure so that the call can be tried again: wait, drop a demoted primary, or read the
        cluster's map.

        :raises ConnectionError, DependencyUnavailable: the call can't be tried again.
        """
        if failure.code == "READONLY" and not self._cluster and link.leave_demoted():
            pass
        elif failure.code == "TRYAGAIN":
            await asyncio.sleep(_PAUSE)
        elif failure.code == "MOVED" and self._cluster:
            await asyncio.sleep(_PAUSE)
            await self._map()
        else:
            raise self._refused(script, failure, link) from failure

    def _refused(self, script: Script, failure: ScriptFailed, link: Link) -> DependencyUnavailable:
        if failure.code in _STATES | _AGAIN_SOON:
            reason = answer_reason(failure.code)
            self.state.failed(reason)
            if failure.code != "OOM":  # scripts that end or keep what was admitted still run
                link.unsteady()
            if _FROM_WITHIN not in str(failure):
                return NotRun("redis", reason=reason)
        _log.error("redis_refused", script=script.name, error=str(failure)[:200])
        return DependencyUnavailable("redis")

    async def _connected(self, shard: int) -> Link:
        if not self._owners:
            await self._map()
        try:
            return await self._owners[shard].connect()
        except ConnectionError:
            if not self._cluster:
                raise
        await asyncio.sleep(_PAUSE)
        await self._map()
        return await self._owners[shard].connect()

    async def _map(self) -> None:
        if self._cluster:
            await self._mapping()

    async def _look(self) -> None:
        """Learn which node holds which shard."""
        failure: Exception = ConnectionError("no node of the cluster answers")
        # Connected nodes first: to find out that one is gone may take a second
        known = sorted(self._nodes, key=lambda address: self._nodes[address].link is None)
        for address in dict.fromkeys([*known, self._seed]):
            try:
                link = await self._node(address).connect()
                self._take(await link.send(pack("CLUSTER", "SLOTS")), address)
            except (ConnectionError, ScriptFailed) as error:
                failure = error
            else:
                return
        raise ConnectionError(str(failure)) from failure

    def _take(self, ranges: list[Any], asked: Address) -> None:
        """``CLUSTER SLOTS``: [first, last, [host, port, id], replicas...] per range; no host: the node asked."""
        owners: dict[int, Node] = {}
        for first, last, primary, *_ in ranges:
            address = ((primary[0] or b"").decode() or asked[0], int(primary[1]))
            for shard, slot in enumerate(_SLOTS):
                if first <= slot <= last:
                    owners[shard] = self._node(address)
        if len(owners) != SHARDS:
            raise ConnectionError("some slots of the cluster have no node")
        self._owners = [owners[shard] for shard in range(SHARDS)]

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(self._pool(address), self._scripts, self._timeout, self._on_connected)
        return node

    def _pool(self, address: Address) -> ConnectionPool:
        made = server_pool(self._place, self.state, self._timeout)
        if self._cluster:
            made.connection_kwargs.update(host=address[0], port=address[1], db=0)
        return made

    def _on_connected(self, node: Node) -> None:
        shards = [shard for shard, owner in enumerate(self._owners) if owner is node]
        for listener in self._listeners:
            listener(shards)


async def _answer(reply: asyncio.Future[Any], deadline: float) -> Any:
    """The reply to a script. One that is here counts even if the deadline has passed before its turn came: what has an
    answer is not unknown.

    :raises ScriptFailed: Redis answered an error.
    :raises DependencyUnavailable: no answer. What the script did is unknown.
    """
    reply.add_done_callback(observe)
    await asyncio.wait((reply,), timeout=deadline - asyncio.get_running_loop().time())
    if not reply.done():
        raise DependencyUnavailable("redis")
    try:
        return reply.result()
    except ConnectionError as error:
        raise DependencyUnavailable("redis") from error


def _address(failure: ScriptFailed, link: Link) -> Address:
    """The address in ``ASK <slot> <host>:<port>``; without a host, another port of the server that sent it."""
    host, _, port = str(failure).split(" ")[2].rpartition(":")
    return host or link.host, int(port)
