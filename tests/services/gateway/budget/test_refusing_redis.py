"""A Redis that answers errors: nothing ran, so nothing is taken back and nobody is charged whole."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import redis as sync_redis

from services.gateway.budget.services import Budgets
from services.gateway.errors import RequestTooLarge
from services.gateway.redis.executor import NotRun
from services.local.postgres import PostgresServer
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.domain.identity import shard
from shared.errors import DependencyUnavailable
from shared.state import decisions
from shared.state.layout import SHARD_KEYS, Standing
from shared.state.refusals import Word
from shared.stores.redis import connect
from tests.services.gateway.budget.support import FAST, ask, delivered, opened, principal, rows, served, spent, total
from tests.support.databases import Databases
from tests.support.exposition import metric
from tests.support.waiting import until

#: A shard is swept long before a request's lease is renewed, or its settlement sent, again.
SWEPT_FIRST = dataclasses.replace(FAST, lease=2, renew=0.8, sweep=0.05)


@contextmanager
def _full(server: ValkeyServer) -> Iterator[None]:
    with server.client() as client:
        client.config_set("maxmemory", 1)
        yield
        client.config_set("maxmemory", 0)


@contextmanager
def _read_only(server: ValkeyServer) -> Iterator[None]:
    with server.client() as client:
        client.replicaof("127.0.0.1", str(free_port()))  # type: ignore[no-untyped-call]
        yield
        client.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]


@contextmanager
def _too_few_replicas(server: ValkeyServer) -> Iterator[None]:
    with server.client() as client:
        client.config_set("min-replicas-to-write", 1)
        yield
        client.config_set("min-replicas-to-write", 0)


@contextmanager
def _cannot_save(server: ValkeyServer) -> Iterator[None]:
    with server.client() as client:
        client.config_set("save", "3600 1000000")
        shutil.rmtree(server.data)
        client.bgsave()
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
            time.sleep(0.01)
        yield
        client.config_set("stop-writes-on-bgsave-error", "no")
        client.config_set("save", "")
        server.data.mkdir()


@contextmanager
def _busy(server: ValkeyServer) -> Iterator[None]:
    with server.client() as client, server.client(timeout=0.2) as other:
        client.config_set("busy-reply-threshold", 1)
        with suppress(sync_redis.TimeoutError):
            other.eval("while true do end", 0)
        yield
        client.script_kill()


STATES = {"OOM": _full, "READONLY": _read_only, "NOREPLICAS": _too_few_replicas, "MISCONF": _cannot_save}
if os.environ.get("MLPA_TEST_FULL"):
    STATES["BUSY"] = _busy  # which takes a core all the while


async def _refused(budgets: Budgets, state: str) -> None:
    """Until an answer of Redis's own refuses an admission, which takes no time."""

    async def refused_by_an_answer() -> bool:
        began = time.monotonic()
        try:
            budgets.settle(await budgets.admit(ask()), delivered(0, 0))
        except NotRun as refusal:
            return f"({state})" in refusal.reason and time.monotonic() - began < 0.3
        except DependencyUnavailable:  # was on its way when it began
            pass
        return False

    await until(refused_by_an_answer)


async def test_a_redis_that_refuses_to_run_scripts_charges_nobody_whole_and_queues_nothing(
    tmp_path: Path, postgres_server: PostgresServer, databases: Databases
) -> None:
    """For longer than a lease, and before the eyes of a gateway that has no request of its own to renew."""
    with ExitStack() as stack:
        refusals = []
        for state in STATES:
            server = stack.enter_context(ValkeyServer(tmp_path / state, free_port()))
            stack.callback(databases.give_back, database := databases.take())
            refusals.append(_refuses(state, server, postgres_server.url(database)))
        await asyncio.gather(*refusals)


async def _refuses(state: str, server: ValkeyServer, postgres_url: str) -> None:
    kinds = rows(rpm=1000)
    async with (
        opened(server.url, postgres_url, kinds, SWEPT_FIRST) as (budgets, database, registry),
        opened(server.url, postgres_url, kinds, SWEPT_FIRST) as (other, _, other_registry),
    ):
        held, late = await budgets.admit(ask()), await budgets.admit(ask())
        await other.state(principal())
        with STATES[state](server):
            await _refused(budgets, state)

            async def all_refused_at_once() -> bool:
                """Unless this process, or Redis, did not get to it in time."""
                unsettled, began = metric(registry, "budget_unsettled"), time.monotonic()
                answers = await asyncio.gather(*(budgets.admit(ask()) for _ in range(50)), return_exceptions=True)
                if time.monotonic() - began > 0.8:
                    return False
                assert {type(answer) for answer in answers} == {NotRun}
                return metric(registry, "budget_unsettled") <= unsettled

            await until(all_refused_at_once)
            budgets.settle(held, delivered())
            await asyncio.sleep(2 * SWEPT_FIRST.lease)
            if state == "OOM":
                assert (await budgets.state(principal())).spent_nano == 50_000, "settled all the same"
        await until(lambda: served(budgets), despite=[DependencyUnavailable])
        await asyncio.sleep(2 * SWEPT_FIRST.renew + 3 * SWEPT_FIRST.sweep)
        for one in (registry, other_registry):
            assert b"budget_reaped_total 0\n" in one.render()
        budgets.settle(late, delivered())

        async def written() -> bool:
            return (await total(database))[1] == 100_000

        await until(written)
        state_now = await budgets.state(principal())
        assert (state_now.spent_nano, state_now.reserved_nano) == (100_000, 0)


async def test_a_redis_that_is_busy_with_a_script_is_answered_for_at_once(
    own_valkey: ValkeyServer, postgres_url: str
) -> None:
    async with opened(own_valkey.url, postgres_url) as (budgets, _, _):
        budgets.settle(await budgets.admit(ask()), delivered())
        with _busy(own_valkey):
            await _refused(budgets, "BUSY")
        await until(lambda: spent(budgets), equals=50_000, despite=[DependencyUnavailable])


async def test_a_redis_that_loads_its_data_is_answered_for_at_once(tmp_path: Path, postgres_url: str) -> None:
    options = {"key-load-delay": "2000", "loading-process-events-interval-bytes": "1024", "enable-debug-command": "yes"}
    with ValkeyServer(tmp_path / "valkey", free_port(), options={**options, "save": "3600 1000000"}) as server:
        async with opened(server.url, postgres_url) as (budgets, _, registry):
            with server.client() as client:
                client.mset({f"other:{number}": "x" * 100 for number in range(4000)})
                client.save()
            budgets.settle(await budgets.admit(ask()), delivered())
            assert await budgets._queue.all_settled(5)
            await asyncio.to_thread(server.process.kill)
            server.process.start()
            await _refused(budgets, "LOADING")
            unsettled = metric(registry, "budget_unsettled")  # of an admission that was on its way to the dying server
            await _refused(budgets, "LOADING")
            assert metric(registry, "budget_unsettled") <= unsettled
            with server.client() as client:
                client.config_set("key-load-delay", 0)
            await until(lambda: spent(budgets), equals=50_000, despite=[DependencyUnavailable])


async def test_a_replica_behind_the_name_of_its_primary_is_left_for_the_new_one(
    own_valkey: ValkeyServer, tmp_path: Path, postgres_url: str
) -> None:
    """As when a name, or a proxy, leads to another server after a failover while old connections live on."""
    at_once = {"shutdown-timeout": "0"}  # it waits for no replica when it ends
    with ValkeyServer(tmp_path / "new", free_port(), options=at_once) as new:
        address: list[int] = [own_valkey.port]

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", address[0])

            async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                with suppress(ConnectionError):
                    while data := await source.read(65_536):
                        target.write(data)
                        await target.drain()
                target.close()

            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

        async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as proxy:
            port = proxy.sockets[0].getsockname()[1]
            async with opened(f"redis://127.0.0.1:{port}", postgres_url) as (budgets, database, registry):
                await asyncio.sleep(1.1)  # the connection is no longer a new one
                budgets.settle(await budgets.admit(ask()), delivered())
                held = await budgets.admit(ask())
                with own_valkey.client() as old:
                    old.replicaof("127.0.0.1", str(new.port))  # type: ignore[no-untyped-call]
                    address[0] = new.port
                    await until(lambda: served(budgets, by=delivered()), 3, despite=[DependencyUnavailable])
                budgets.settle(held, delivered())
                await until(lambda: total(database), equals=(3, 150_000))
                assert (await budgets.state(principal())).reserved_nano == 0
                assert b"budget_reaped_total 0\n" in registry.render()


async def test_a_gateway_whose_settlements_wait_admits_no_more_than_it_has_room_for(
    own_valkey: ValkeyServer, postgres_url: str
) -> None:
    """Each admission that Redis leaves without an answer is to be taken back later: a number that must end."""
    async with opened(own_valkey.url, postgres_url) as (budgets, _, registry):
        budgets.settle(await budgets.admit(ask()), delivered())
        assert await budgets._queue.all_settled(5)
        budgets._queue._room = 30
        await asyncio.to_thread(own_valkey.process.pause)
        await asyncio.gather(*(budgets.admit(ask()) for _ in range(30)), return_exceptions=True)
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(DependencyUnavailable) as refusal:
                await budgets.admit(ask())
            assert refusal.value.dependency == "redis"
        assert time.monotonic() - began < 0.5
        assert b"budget_unsettled 30\n" in registry.render()
        await asyncio.to_thread(own_valkey.process.resume)
        await until(lambda: b"budget_unsettled 0\n" in registry.render())
        budgets.settle(await budgets.admit(ask()), delivered())


async def test_a_redis_that_is_closed_before_another_one_opens_spends_no_budget_twice(
    own_valkey: ValkeyServer, tmp_path: Path, postgres_url: str
) -> None:
    """The way of the runbook to another server: old gateways settle what is open, and admit nothing more."""
    budget, cost = 1_000_000, 50_000
    kinds = rows(max_budget_nano=budget, rpm=1000)
    with ValkeyServer(tmp_path / "new", free_port()) as other_server:
        async with (
            opened(own_valkey.url, postgres_url, kinds) as (old, database, registry),
            opened(other_server.url, postgres_url, kinds) as (new, _, _),
        ):
            for _ in range(7):
                old.settle(await old.admit(ask()), delivered())
            held = await old.admit(ask())
            with _full(own_valkey):
                await _refused(old, "OOM")
                old.settle(held, delivered())

                async def nothing_left() -> bool:
                    names = ("budget_open_reservations", "budget_unsettled", "budget_outbox_oldest_seconds")
                    return not any(metric(registry, name) for name in names) and await total(database) == (8, 8 * cost)

                await until(nothing_left)
                for _ in range(10):
                    with pytest.raises(NotRun):
                        await old.admit(ask())
                    new.settle(await new.admit(ask()), delivered())
                with pytest.raises(RequestTooLarge):
                    await new.admit(ask())
                await until(lambda: total(database), equals=(18, 18 * cost))
                # 0.0001 are left, and the least that a request of this prompt reserves is 0.000102
                assert (await new.state(principal())).spent_nano == 18 * cost


async def test_in_full_memory_runs_whatever_ends_keeps_or_decides_and_whatever_only_reads(
    own_valkey: ValkeyServer, postgres_url: str
) -> None:
    """The rows and reservations of a dead gateway, too: they are reaped, written and acknowledged."""
    who, user_id = principal(), principal().user_id
    number, kinds = shard(who.identity), rows(rpm=1000)
    async with (
        opened(own_valkey.url, postgres_url, kinds) as (budgets, database, _),
        opened(own_valkey.url, postgres_url, kinds) as (dying, _, _),
        connect(own_valkey.url) as client,
    ):
        left = await dying.admit(ask())
        dying._renewals.remove(left)
        open_ = await budgets.admit(ask())
        with _full(own_valkey):
            with pytest.raises(NotRun):
                await budgets.admit(ask())

            async def reaped() -> bool:
                return await total(database) == (1, left.amount_nano) and not await client.exists(
                    SHARD_KEYS[number].outbox
                )

            await until(reaped)
            assert await budgets._scripts.renew(number, [open_]) == [Word.OK]
            with pytest.raises(NotRun):  # the state must be built again, since a reaped row was acknowledged
                await budgets.state(who)
            assert (await budgets._scripts.snapshot(user_id)).rows == {}
            assert await decisions.read_users(client, [user_id]) == [None]
            assert (await decisions.known(client, who.identity, "ai")).user is False
            recorded = decisions.Recorded("ai", Standing.GOOD, 0, [])
            assert await decisions.outlook(client, user_id, kinds.by_name, recorded, least=1, empty=1) is not None
            assert isinstance(await budgets._scripts.totals(number, ["ai:86400"], [0]), list)
            await decisions.set_user(client, user_id, "ai")
            assert await decisions.set_standing(client, who.identity, Standing.BLOCKED)
            assert await budgets._scripts.renew(number, [open_]) == [Word.BLOCKED]
        budgets.settle(open_, delivered())
