"""Erasures: what is left of an identity, what it has again when it returns, and how they survive every outage."""

from __future__ import annotations

import asyncio

import pytest

from services.gateway.errors import InvalidToken
from services.gateway.errors import UserBlocked as Ended
from tests.services.auth.erasure.conftest import JANE, World
from tests.services.gateway.budget.support import ask, delivered, opened, principal, row
from tests.support.digests import DIGESTS
from tests.support.waiting import until

WHO = principal()
UID = WHO.identity
KEY = "3q2+7wARIjNEVWZ3iJmqu8zd7v8AESIzRFVmd4iZqrs="
INSTALL = "12345678-9abc-4def-8123-456789abcdef"


async def test_an_erased_account_leaves_no_trace_but_its_digest(world: World) -> None:
    other = principal(user=2)
    memories = principal(row("memories"))
    for identity in (UID, other.identity):
        for service_type in ("ai", "memories"):
            await world.users.enter(identity, world.types.rows[service_type])
            world.litellm.customers[f"{identity}:{service_type}"] = {"budget_id": None}
    await world.admin.set_tier(WHO.user_id, JANE, "memories")
    await world.run(
        "insert into exceptions values (:user, 5, false, now() + interval '1 day', 'fair') returning 1",
        user=WHO.user_id,
    )
    await world.run(
        "insert into revocations values ('j', :user, now() + interval '1 day') returning 1", user=WHO.user_id
    )
    await world.admin.block(WHO.user_id, JANE, f"{UID} is a robot")
    await world.admin.unblock(WHO.user_id, JANE)
    async with opened(world.redis_url, world.postgres_url, world.types) as (budgets, _, _):
        for who in (WHO, memories, other):
            done = await budgets.admit(ask(who))
            budgets.settle(done, delivered())
        await until(lambda: world.one("select count(*) = 3 from ledger"))
        running = await budgets.admit(ask(WHO))
        last_row = await budgets.admit(ask(memories))
        budgets.settle(last_row, delivered())  # on its way to the ledger

        erasing = asyncio.create_task(world.erasures.erase(UID, JANE))
        with pytest.raises(Ended):
            raise await running.revoked
        budgets.settle(running, delivered(outcome="error"))
        await erasing
        await world.erasures.finish()

        assert await world.traces(UID) == []
        assert await world.one("select count(*) from ledger") == 5
        for who in (WHO, memories):
            with pytest.raises(InvalidToken):
                await budgets.admit(ask(who))
        assert await world.traces(UID) == [], "a token in hand brings nothing back"
        budgets.settle(await budgets.admit(ask(other)), delivered())
        await until(lambda: world.one("select count(*) = 6 from ledger"))
    assert world.purged.count(UID) >= 1
    digest = DIGESTS.of(UID)
    assert await world.one("select count(*) from ledger where user_id like :d", d=f"{digest}:%") == 4
    assert await world.one("select count(*) from audit_log where subject like :d", d=f"{digest}%") == 4
    assert await world.admin.counts() == {"ai": 1, "memories": 1}
    assert set(world.litellm.customers) == {other.user_id, f"{other.identity}:memories"}
    spent = await world.one("select sum(cost_nano)::text from ledger")
    for table in ("user_spend", "ledger_totals"):
        assert await world.one(f"select sum(spent_nano)::text from {table}") == spent
    assert await world.one("select sum(cost_nano)::text from ledger_hours where credential = 'fxa'") == spent


async def test_no_sum_changes_by_an_erasure(world: World) -> None:
    async with opened(world.redis_url, world.postgres_url, world.types) as (budgets, _, _):
        for who in (WHO, principal(user=2), principal(row("memories"))):
            await world.users.enter(who.identity, who.service_type)
            for _ in range(3):
                budgets.settle(await budgets.admit(ask(who)), delivered())
        await until(lambda: world.one("select count(*) = 9 from ledger"))
    before = await world.sums()
    await world.erasures.erase(UID, JANE)
    assert await world.sums() == before
    assert await world.one("select count(*) from ledger where user_id like :uid", uid=f"{UID}%") == 0
