"""Budgets on a real Valkey cluster of three nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.gateway.budget.models import Delivery
from services.local.valkey import ValkeyCluster
from shared.errors import DependencyUnavailable
from tests.services.gateway.budget.support import ask, delivered, opened, principal, row, rows, total
from tests.support.waiting import until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    with ValkeyCluster(tmp_path / "cluster") as running:
        yield running


async def test_users_of_all_nodes_are_served(cluster: ValkeyCluster, postgres_url: str) -> None:
    """Every script stays on one slot, and users are spread over all three nodes."""
    kinds = rows(row(total_budget_nano=10**12))
    async with opened(cluster.url, postgres_url, kinds) as (budgets, database, _):
        users = [principal(kinds.rows["ai"], user=number) for number in range(60)]

        async def ready() -> bool:
            try:
                budgets.settle(await budgets.admit(ask(users[0])), Delivery("abort", sent=False))
            except DependencyUnavailable:
                return False
            return True

        await until(ready)
        epochs = {budgets._scripts.executor.epoch(number) for number in range(64)}
        assert len(epochs) == 3
        held = await asyncio.gather(*(budgets.admit(ask(who)) for who in users))
        for reservation in held:
            budgets.settle(reservation, delivered())

        async def written() -> bool:
            return await total(database) == (61, 60 * 50_000)

        await until(written)
        for who in users:
            state = await budgets.state(who)
            assert (state.spent_nano, state.reserved_nano) == (50_000, 0)


async def test_a_node_that_is_lost_and_returns_empty_is_rebuilt(cluster: ValkeyCluster, postgres_url: str) -> None:
    async with opened(cluster.url, postgres_url) as (budgets, database, _):
        users = [principal(user=number) for number in range(30)]
        for reservation in await asyncio.gather(*(budgets.admit(ask(who)) for who in users)):
            budgets.settle(reservation, delivered())

        async def written() -> bool:
            return await total(database) == (30, 30 * 50_000)

        await until(written)
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
