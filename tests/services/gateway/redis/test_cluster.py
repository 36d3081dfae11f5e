"""Budgets on a real Valkey cluster of three nodes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest
from redis.crc import key_slot

from services.gateway.budget.models import Delivery
from services.gateway.budget.services import Budgets
from services.gateway.redis.executor import Executor, NotRun
from services.gateway.tokens.models import Principal
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.domain.identity import shard, shard_tag
from shared.errors import DependencyUnavailable
from shared.state import layout
from shared.state.script import Script
from shared.stores.postgres import Database
from tests.services.gateway.budget.support import FAST, ask, delivered, opened, principal, rows, served, spent, total
from tests.support.valkey_cluster import CLUSTER_SLOTS, ValkeyCluster, cluster_options
from tests.support.waiting import until


@pytest.fixture(scope="module")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    with ValkeyCluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def cluster(started_cluster: ValkeyCluster) -> ValkeyCluster:
    """One for all tests, since a node takes two seconds to take writes; complete and empty, with slots anywhere."""
    started_cluster.mend()
    return started_cluster


async def test_users_of_all_nodes_are_served(cluster: ValkeyCluster, postgres_url: str) -> None:
    """Every script stays on one slot, and users are spread over all three nodes."""
    kinds = rows(total_budget_nano=10**12)
    async with opened(cluster.url, postgres_url, kinds) as (budgets, database, _):
        users = [principal(kinds.by_name["ai"], user=number) for number in range(60)]
        await until(lambda: served(budgets, users[0]), despite=[DependencyUnavailable])
        epochs = {budgets._scripts.executor.epoch(number) for number in range(64)}
        assert len(epochs) == 3
        held = await asyncio.gather(*(budgets.admit(ask(who)) for who in users))
        for reservation in held:
            budgets.settle(reservation, delivered())
        await until(lambda: total(database), equals=(61, 60 * 50_000))
        for who in users:
            state = await budgets.state(who)
            assert (state.spent_nano, state.reserved_nano) == (50_000, 0)


async def test_a_node_that_is_lost_and_returns_empty_is_rebuilt(cluster: ValkeyCluster, postgres_url: str) -> None:
    async with opened(cluster.url, postgres_url) as (budgets, database, _):
        users = [principal(user=number) for number in range(30)]
        for reservation in await asyncio.gather(*(budgets.admit(ask(who)) for who in users)):
            budgets.settle(reservation, delivered())
        await until(lambda: total(database), equals=(30, 30 * 50_000))
        node = cluster.nodes[1]
        await asyncio.to_thread(node.process.kill)
        results = await asyncio.gather(*(budgets.admit(ask(who)) for who in users), return_exceptions=True)
        assert any(isinstance(result, DependencyUnavailable) for result in results)
        node.process.start()

        async def all_served() -> bool:
            states = await asyncio.gather(*(budgets.state(who) for who in users), return_exceptions=True)
            return all(not isinstance(state, BaseException) and state.spent_nano == 50_000 for state in states)

        await until(all_served, 20)
        for result in results:
            if not isinstance(result, BaseException):
                budgets.settle(result, Delivery("abort", sent=False))


# --- moving slots ---------------------------------------------------------------------------------------------------


def _slot(number: int) -> int:
    return key_slot(shard_tag(number).encode())


def _owner(nodes: Sequence[ValkeyServer], slot: int) -> ValkeyServer:
    with nodes[0].client() as client:
        for first, last, (_, port, *_), *_ in client.execute_command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in nodes if node.port == port)
    raise AssertionError("no node has the slot")


def _id(node: ValkeyServer) -> str:
    with node.client() as client:
        answer: bytes = client.execute_command("CLUSTER", "MYID")
        return answer.decode()


@contextlib.contextmanager
def _between(source: ValkeyServer, target: ValkeyServer, slot: int) -> Iterator[Callable[[int], bool]]:
    """The time in which a slot is moving: yields a function that moves some of its keys and says if any were left."""
    with source.client() as old, target.client() as new:
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", _id(source))
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", _id(target))

        def move(count: int) -> bool:
            keys = old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, count)
            if keys:
                old.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            return bool(keys)

        yield move
        while move(100):
            pass
        for client in (new, old):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", _id(target))


def _move_at_once(source: ValkeyServer, target: ValkeyServer, first: int, last: int) -> None:
    """Atomically, as Valkey 9 and Redis 8.4 can, once the source knows the target."""
    with source.client() as client:
        while _id(target) not in str(client.execute_command("CLUSTER", "NODES")):
            time.sleep(0.01)
        client.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", _id(target))
        while (state := client.execute_command("CLUSTER", "GETSLOTMIGRATIONS")[0][b"state"]) != b"success":
            assert state not in (b"failed", b"canceled"), state
            time.sleep(0.01)


#: Leases that outlast a cluster's pauses, and settlements that are sent again before anything is reaped.
STEADY = dataclasses.replace(FAST, lease=6, renew=1.5)


class Load:
    """Chats of some users at any of some gateways, one at a time for each user; counts the settled ones."""

    def __init__(self, users: Sequence[Principal], gateways: Sequence[Budgets]) -> None:
        self.users, self.gateways = users, list(gateways)
        self.settled: Counter[str] = Counter()
        self.refused = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self._chat(user, stop)) for user in self.users]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _chat(self, user: Principal, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            budgets = self.gateways[number % len(self.gateways)]
            try:
                held = await budgets.admit(ask(user))
            except DependencyUnavailable:
                self.refused += 1
                continue
            await asyncio.sleep(0.01)
            budgets.settle(held, delivered())
            self.settled[user.user_id] += 1

    async def more(self, chats: int = 10) -> None:
        """Until each user has had more chats."""
        before = Counter(self.settled)
        await until(lambda: all(self.settled[user.user_id] >= before[user.user_id] + chats for user in self.users), 20)

    async def exact(self, database: Database) -> None:
        """The ledger and every user's state have all settled amounts, and nothing is left open."""
        chats = sum(self.settled.values())
        assert chats
        await until(lambda: total(database), equals=(chats, chats * 50_000))
        for user in self.users:
            state = await self.gateways[0].state(user)
            assert (state.spent_nano, state.reserved_nano) == (self.settled[user.user_id] * 50_000, 0)


async def test_a_slot_that_is_moved_under_load_loses_nothing(cluster: ValkeyCluster, postgres_url: str) -> None:
    """Key by key, there and back. Only the slot's users wait meanwhile."""
    moved, beside = principal(user=1), principal(user=2)
    slot = _slot(shard(moved.identity))
    assert slot != _slot(shard(beside.identity))
    kinds = rows(rpm=100_000, total_budget_nano=10**12)
    async with opened(cluster.url, postgres_url, kinds, STEADY) as (budgets, database, registry):
        load = Load([moved, beside], [budgets])
        async with load.running():
            await load.more()
            for _ in range(2):
                source = _owner(cluster.nodes, slot)
                target = next(node for node in cluster.nodes if node is not source)
                with _between(source, target, slot) as move:
                    before = load.settled[beside.user_id]
                    for _ in range(5):
                        await asyncio.sleep(0.1)
                        await asyncio.to_thread(move, 1)
                    assert load.settled[beside.user_id] > before
                await load.more()
        await load.exact(database)
        assert b"budget_reaped_total 0\n" in registry.render()


async def test_a_key_that_has_moved_already_is_asked_for_where_it_is(cluster: ValkeyCluster) -> None:
    script = Script("totals")
    number = 5
    key = layout.SHARD_KEYS[number].totals
    source = _owner(cluster.nodes, _slot(number))
    target = next(node for node in cluster.nodes if node is not source)
    async with Executor.open(cluster.url, (script,)) as executor:
        call = script.call(totals=key, each=[script.item(total="ai:60", since=0)])

        async def built() -> bool:
            """Under the epoch of the server that runs the script."""
            return (await executor.run(number, call))[1] != b"-1"

        assert not await built()
        with target.client() as client:
            epoch = client.info("server")["run_id"]
        with source.client() as client:
            client.hset(key, mapping={layout.EPOCH: epoch, f"{layout.BUILT}ai:60": "1"})
        with _between(source, target, _slot(number)) as move:
            assert not await built(), "it is still where it was"
            assert await asyncio.to_thread(move, 1)
            assert await built(), "read in its new place, under that epoch"
            with target.client() as client:
                client.script_flush()
            assert await built()
        assert await built()


async def test_slots_that_are_moved_atomically_refuse_nobody(cluster: ValkeyCluster, postgres_url: str) -> None:
    users = [principal(user=number) for number in range(1, 7)]
    async with opened(cluster.url, postgres_url, rows(rpm=100_000), STEADY) as (budgets, database, _):
        load = Load(users, [budgets])
        async with load.running():
            await load.more()
            for source, target in ((0, 1), (1, 2)):
                share = -(-CLUSTER_SLOTS // 3)
                nodes = cluster.nodes
                await asyncio.to_thread(_move_at_once, nodes[source], nodes[target], 0, share - 1)
                await load.more()
        await load.exact(database)
        assert load.refused == 0


async def test_one_redis_becomes_a_cluster_that_grows_and_no_budget_is_spent_twice(
    tmp_path: Path, postgres_url: str
) -> None:
    """The way of the runbook: the same server turns into a cluster of one node, which old and new gateways use alike;
    it gives slots to others when no old gateway is left.
    """
    data, port, keeps = tmp_path / "redis", free_port(), {"appendonly": "yes"}
    single = ValkeyServer(data, port, options=keeps)
    one_node = ValkeyServer(data, port, options={**keeps, **cluster_options()})
    added = ValkeyServer(tmp_path / "added", free_port(), options=cluster_options())
    users = [principal(user=number) for number in range(1, 7)]
    kinds = rows(rpm=100_000, total_budget_nano=10**12)
    with contextlib.ExitStack() as stack:
        with (
            ValkeyServer(tmp_path / "empty", free_port(), options=cluster_options()) as empty,
            empty.client() as client,
        ):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, CLUSTER_SLOTS - 1)
        single.start()
        async with opened(f"redis+cluster://127.0.0.1:{port}", postgres_url, kinds, STEADY) as (new, database, _):
            async with opened(single.url, postgres_url, kinds, STEADY) as (old, _, _):
                load = Load(users, [old])
                async with load.running():
                    await load.more()
                    await asyncio.to_thread(single.stop)
                    (data / "nodes.conf").write_bytes((tmp_path / "empty" / "nodes.conf").read_bytes())
                    one_node.start()
                    stack.callback(one_node.stop)
                    await load.more()
                    load.gateways = [old, new]
                    await load.more()
                    load.gateways = [new]
            with stack.enter_context(added).client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 77)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", port, one_node.options["cluster-port"])
            async with load.running():
                await load.more()
                await asyncio.to_thread(_move_at_once, one_node, added, 0, CLUSTER_SLOTS // 2)
                await load.more()
            await load.exact(database)


async def test_a_gateway_that_knows_one_node_only_admits_nobody_whose_slot_has_gone(
    cluster: ValkeyCluster, postgres_url: str
) -> None:
    """``redis://`` to a node of a cluster: at once, and without a rest."""
    elsewhere = next(
        who
        for number in range(1, 100)
        if _owner(cluster.nodes, _slot(shard((who := principal(user=number)).identity))) is not cluster.nodes[0]
    )
    async with opened(cluster.nodes[0].url, postgres_url) as (budgets, _, registry):
        with pytest.raises(NotRun):
            await budgets.admit(ask(elsewhere))
        began = time.monotonic()
        with pytest.raises(NotRun):
            await budgets.admit(ask(elsewhere))
        assert time.monotonic() - began < 0.3
        assert b"budget_unsettled 0\n" in registry.render()


# --- losing a node --------------------------------------------------------------------------------------------------


async def test_a_node_that_hangs_holds_up_no_settlement_of_another_one(
    cluster: ValkeyCluster, postgres_url: str
) -> None:
    for node in cluster.nodes:
        with node.client() as client:
            client.config_set("cluster-require-full-coverage", "no")
    async with opened(cluster.url, postgres_url) as (budgets, database, registry):
        who = [principal(user=number) for number in range(1, 60)]
        hung = _owner(cluster.nodes, _slot(shard(who[0].identity)))
        its = [one for one in who if _owner(cluster.nodes, _slot(shard(one.identity))) is hung]
        healthy = next(one for one in who if one not in its)
        held = [await budgets.admit(ask(one)) for one in its * 20]
        beside = _owner(cluster.nodes, _slot(shard(healthy.identity)))
        last = await budgets.admit(ask(healthy))
        assert len(held) > 220, "more than are sent at once"
        await asyncio.to_thread(hung.process.pause)
        for one in held:
            budgets.settle(one, delivered())
        await until(lambda: not budgets._queue._sent)
        with beside.client() as client:
            client.script_flush()  # so that this one is not taken at its first try either
        began = time.monotonic()
        budgets.settle(last, delivered())
        await until(lambda: spent(budgets, healthy), equals=50_000)
        assert time.monotonic() - began < FAST.lease / 2
        await until(lambda: total(database), equals=(1, 50_000))
        await asyncio.to_thread(hung.process.resume)

        async def all_written() -> bool:
            return (await total(database))[1] == (len(held) + 1) * 50_000

        await until(all_written)
        assert b"budget_unsettled 0\n" in registry.render()


async def test_a_cluster_that_is_down_is_answered_for_at_once(cluster: ValkeyCluster, postgres_url: str) -> None:
    async with opened(cluster.url, postgres_url) as (budgets, _, _):
        who = principal(user=1)
        budgets.settle(await budgets.admit(ask(who)), delivered())
        lost = next(node for node in cluster.nodes if node is not _owner(cluster.nodes, _slot(shard(who.identity))))
        await asyncio.to_thread(lost.process.kill)

        async def down() -> bool:
            began = time.monotonic()
            try:
                budgets.settle(await budgets.admit(ask(who)), delivered())
            except NotRun as refusal:
                return "CLUSTERDOWN" in refusal.reason and time.monotonic() - began < 0.3
            return False

        await until(down)
        waiting = budgets._queue.unsettled
        answers = await asyncio.gather(*(budgets.admit(ask(who)) for _ in range(50)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {NotRun}
        assert budgets._queue.unsettled <= waiting, "nothing to be taken back"
