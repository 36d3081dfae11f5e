"""Users become customers, once each, whatever LiteLLM, PostgreSQL and other replicas do meanwhile."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from services.auth.provisioning import storage
from services.auth.provisioning.storage import Customer
from shared.domain.service_types import ServiceTypes
from shared.stores import migrate
from shared.stores.postgres import Database, Query
from shared.telemetry.metrics import Registry
from tests.doubles.litellm_admin import Fault, broken, busy, hang, html
from tests.services.auth.provisioning.conftest import QUICK, World
from tests.support.exposition import metric
from tests.support.waiting import until

Rows = Callable[[str], ServiceTypes]
NUMBER = 1000 if os.environ.get("MLPA_TEST_FULL") else 120


async def test_budgets_stand_before_anybody_enters(world: World) -> None:
    async with world.provisioner().running():
        await until(lambda: len(world.litellm.budgets) == 4)
    assert {(b["budget_id"], b["max_budget"], b["budget_duration"]) for b in world.litellm.budgets.values()} == {
        ("mlpa:ai", 0.2, "1d"),
        ("mlpa:s2s", 0.2, "1d"),
        ("mlpa:memories", 0.2, "1d"),
        ("mlpa:+exceptions", 1_000_000, "1d"),
    }


async def test_budgets_that_two_find_missing_at_once_are_made_once(world: World) -> None:
    """Else the later one forgets whom the other has served: the first user and the first sweep meet so."""
    provisioner = world.provisioner()
    await asyncio.gather(provisioner.sweep(), provisioner.sweep())
    assert world.litellm.calls["/budget/new"] == 4


async def test_a_user_who_enters_becomes_a_customer_once(world: World) -> None:
    await world.add("u:ai")
    registry = Registry()
    provisioner = world.provisioner(registry=registry)
    async with provisioner.running():
        for _ in range(5):
            provisioner.entered("u:ai")
        await until(lambda: _is(world.remembered("u:ai"), "mlpa:ai"))
        await until(lambda: metric(registry, "litellm_provisioning_pending") == 0)
        for _ in range(5):
            provisioner.entered("u:ai")
        assert metric(registry, "litellm_provisioning_pending") == 0
    assert world.litellm.budget_of("u:ai") == "mlpa:ai"
    assert world.litellm.calls["/customer/new"] == 1
    assert metric(registry, "litellm_provisioning_total", result="success") == 1


async def test_a_user_done_before_costs_litellm_nothing_after_a_restart(world: World) -> None:
    async with world.provisioner().running():
        await until(lambda: len(world.litellm.budgets) == 4)
    await world.add("u:ai", budget="mlpa:ai")
    registry = Registry()
    provisioner = world.provisioner(registry=registry)
    async with provisioner.running():
        provisioner.entered("u:ai")
        await until(lambda: metric(registry, "litellm_provisioning_pending") == 0)
    assert world.litellm.calls["/customer/new"] == world.litellm.calls["/customer/update"] == 0


async def test_a_changed_row_updates_its_budget_and_no_other(world: World, service_types: Rows) -> None:
    async with world.provisioner(rows=service_types("ai=0.10/1d pro=5/30d")).running():
        await until(lambda: len(world.litellm.budgets) == 3)
    async with world.provisioner(rows=service_types("ai=0.30/7d pro=5/30d"), factor=1.5).running():
        await until(lambda: world.litellm.budgets["mlpa:pro"]["max_budget"] == 7.5)
    assert world.litellm.budgets["mlpa:ai"]["max_budget"] == 0.45
    assert world.litellm.budgets["mlpa:ai"]["budget_duration"] == "7d"
    calls = world.litellm.calls.copy()
    await world.provisioner(rows=service_types("ai=0.30/7d pro=5/30d"), factor=1.5).sweep()
    assert world.litellm.calls - calls == {"/budget/info": 1}


async def test_a_tier_change_moves_the_customer(world: World, service_types: Rows) -> None:
    await world.add("u:ai", "v:ai")
    provisioner = world.provisioner(rows=service_types("ai=0.10/1d pro=5/30d"))
    async with provisioner.running():
        for user in ("u:ai", "v:ai"):
            provisioner.entered(user)
        await until(lambda: _is(world.missing(), 0))
        await world.set_tier("u:ai", "pro")
        provisioner.changed("u:ai")
        await until(lambda: _is(world.remembered("u:ai"), "mlpa:pro"))
        await world.set_tier("v:ai", "pro")
        await provisioner.sweep()
        await until(lambda: _is(world.remembered("v:ai"), "mlpa:pro"))
    assert world.litellm.budget_of("u:ai") == world.litellm.budget_of("v:ai") == "mlpa:pro"
    assert world.litellm.calls["/customer/new"] == 2
    assert world.litellm.calls["/customer/update"] == 2


@pytest.mark.parametrize("fault", [html, busy, broken])
async def test_a_litellm_gone_wrong_costs_a_metric_and_is_caught_up_with(world: World, fault: Fault) -> None:
    await world.add("u:ai")
    world.litellm.fault = fault
    registry = Registry()
    provisioner = world.provisioner(registry=registry, pace=replace(QUICK, attempts=10**6))
    async with provisioner.running():
        provisioner.entered("u:ai")
        await until(lambda: metric(registry, "litellm_provisioning_total", result="failure") > 3)
        assert metric(registry, "litellm_provisioning_pending") == 1
        assert metric(registry, "litellm_provisioning_up") == 0
        world.litellm.fault = None
        await until(lambda: _is(world.remembered("u:ai"), "mlpa:ai"))
        assert metric(registry, "litellm_provisioning_up") == 1
        assert metric(registry, "litellm_provisioning_pending") == 0


async def test_a_hanging_litellm_holds_up_nobody_and_the_queue_stays_bounded(world: World) -> None:
    world.litellm.fault = hang
    registry = Registry()
    pace = replace(QUICK, batch=10, max_pending=100)
    provisioner = world.provisioner(world.admin(timeout=30), registry=registry, pace=pace)
    async with provisioner.running():
        await until(lambda: world.litellm.calls.total() == 1)  # the sweep hangs
        started = time.perf_counter()
        for number in range(10_000):
            provisioner.entered(f"{number}:ai")
        assert (time.perf_counter() - started) / 10_000 < 0.0005
        assert metric(registry, "litellm_provisioning_pending") <= 110
        assert metric(registry, "litellm_provisioning_total", result="dropped") == 10_000 - 100
        started = time.perf_counter()
    assert time.perf_counter() - started < 1  # nor does it hold up the end


async def test_users_who_were_missed_are_found_by_sweeps_in_small_batches(world: World) -> None:
    users = [f"{number:05d}:ai" for number in range(NUMBER)]
    await world.add(*users)
    await world.add("gone:ai", tier="a tier that no row has any more")
    provisioner = world.provisioner(pace=replace(QUICK, sweep_batch=50, sweep_every=0.01))
    async with provisioner.running():
        await until(lambda: _is(world.missing(), 1))
    assert set(world.litellm.customers) == set(users)
    assert world.litellm.calls["/customer/new"] == NUMBER


async def test_one_user_whom_litellm_refuses_is_given_up_for_now_and_stops_no_other(world: World) -> None:
    await world.add("bad:ai", "u:ai", "v:ai")
    world.litellm.fault, world.litellm.fault_for = broken, "bad:ai"
    registry = Registry()
    provisioner = world.provisioner(registry=registry)
    async with provisioner.running():
        for user in ("bad:ai", "u:ai", "v:ai"):
            provisioner.entered(user)
        await until(lambda: _is(world.missing(), 1))
        await until(lambda: metric(registry, "litellm_provisioning_pending") == 0)
        world.litellm.fault = None
        await provisioner.sweep()
        await until(lambda: _is(world.missing(), 0))


async def test_many_replicas_at_once_leave_each_user_with_its_budget(world: World) -> None:
    users = [f"{number:05d}:ai" for number in range(NUMBER)]
    await world.add(*users)
    provisioners = [world.provisioner(pace=replace(QUICK, batch=20, sweep_every=0.05)) for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()
        for provisioner in provisioners:
            group.create_task(_run(provisioner.running(), stop))
        for user in users:
            for provisioner in provisioners:
                provisioner.entered(user)
        await until(lambda: _is(world.missing(), 0), seconds=30)
        stop.set()
    assert {world.litellm.budget_of(user) for user in users} == {"mlpa:ai"}
    assert len(world.litellm.budgets) == 4


async def test_two_replicas_that_saw_different_tiers_do_it_again(world: World) -> None:
    """Neither can know whose request LiteLLM took last, so neither is believed."""
    await world.add("u:ai")
    await storage.remember(world.database, [Customer("u:ai", "pro", None, "mlpa:pro")])
    assert await world.remembered("u:ai") == "mlpa:pro"
    await storage.remember(world.database, [Customer("u:ai", "ai", None, "mlpa:ai")])
    assert await world.remembered("u:ai") is None
    await storage.remember(world.database, [Customer("u:ai", "ai", None, "mlpa:ai")])
    await storage.remember(world.database, [Customer("u:ai", "ai", None, "mlpa:ai")])
    assert await world.remembered("u:ai") == "mlpa:ai"


async def test_a_litellm_that_lost_its_database_gets_all_customers_again(world: World) -> None:
    users = [f"{number}:ai" for number in range(20)]
    await world.add(*users)
    provisioner = world.provisioner()
    async with provisioner.running():
        for user in users:
            provisioner.entered(user)
        await until(lambda: _is(world.missing(), 0))
        world.litellm.budgets.clear()
        world.litellm.customers.clear()
        await provisioner.sweep()
        await until(lambda: len(world.litellm.customers) == 20)
        await until(lambda: _is(world.missing(), 0))


async def test_a_budget_that_is_gone_is_made_again_for_the_next_user(world: World) -> None:
    await world.add("u:ai", "v:ai")
    provisioner = world.provisioner()
    async with provisioner.running():
        provisioner.entered("u:ai")
        await until(lambda: _is(world.remembered("u:ai"), "mlpa:ai"))
        del world.litellm.budgets["mlpa:ai"]
        provisioner.entered("v:ai")
        await until(lambda: _is(world.remembered("v:ai"), "mlpa:ai"))
    assert world.litellm.budget_of("v:ai") == "mlpa:ai"


async def test_a_user_who_is_deleted_meanwhile_is_forgotten(world: World) -> None:
    registry = Registry()
    provisioner = world.provisioner(registry=registry)
    async with provisioner.running():
        provisioner.entered("nobody:ai")
        await until(lambda: metric(registry, "litellm_provisioning_pending") == 0)
    assert not world.litellm.customers


async def _is(found: object, wanted: object) -> bool:
    return await found == wanted  # type: ignore[misc]


async def _run(context: object, stop: asyncio.Event) -> None:
    async with context:  # type: ignore[attr-defined]
        await stop.wait()


async def test_users_are_made_customers_though_auth_started_before_the_migration(
    world: World, empty_postgres_url: str
) -> None:
    async with Database.connect(empty_postgres_url) as database:
        world.database = database
        pace = replace(QUICK, sweep_every=0.05)
        async with world.provisioner(registry=Registry(), pace=pace).running():
            await until(lambda: database.state.reason)
            await asyncio.to_thread(migrate.upgrade, empty_postgres_url)
            await world.add("a:ai")
            await until(lambda: _is(world.missing(), 0))


async def test_a_user_who_may_spend_more_has_no_limit_in_litellm_until_the_exception_ends(world: World) -> None:
    await world.add("u:ai", "v:ai", budget="mlpa:ai")
    user = "u:ai"
    await world.database.execute(
        Query.text(
            "insert into exceptions (user_id, extra_nano, without_rates, ends_at) "
            "values (:user, 5, false, now() + interval '1 hour')"
        ),
        user=user,
    )
    async with world.provisioner(pace=replace(QUICK, sweep_every=0.1)).running():
        await until(lambda: is_remembered(world, user, "mlpa:+exceptions"))
        assert await world.remembered("v:ai") == "mlpa:ai"
        await world.database.execute(Query.text("update exceptions set ends_at = now() - interval '1 second'"))
        await until(lambda: is_remembered(world, user, "mlpa:ai"))


async def is_remembered(world: World, user: str, budget: str) -> bool:
    return bool(await world.remembered(user) == budget)


async def test_while_a_row_is_not_enforced_its_budget_in_litellm_has_no_limit(
    world: World, service_types: Rows
) -> None:
    table = service_types("ai=0.10/1d")
    async with world.provisioner(rows=table).running():
        await until(lambda: has_budget(world, "mlpa:ai", 0.2))
        row = msgspec.structs.replace(table.by_name["ai"], enforce=False, enforce_until=time.time() + 3600)
        table.take(ServiceTypes({"ai": row}, {}))
        await until(lambda: has_budget(world, "mlpa:ai", 1_000_000))
        table.take(ServiceTypes({"ai": msgspec.structs.replace(row, enforce_until=time.time() - 1)}, {}))
        await until(lambda: has_budget(world, "mlpa:ai", 0.2))


async def has_budget(world: World, name: str, usd: float) -> bool:
    return name in world.litellm.budgets and bool(world.litellm.budgets[name]["max_budget"] == usd)
