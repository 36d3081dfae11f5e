"""Requests to LiteLLM's admin API: their effects, its errors, and the harm that a broken LiteLLM can't do."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from decimal import Decimal

import pytest

from services.auth.provisioning.client import (
    GATEWAY_ROUTES,
    LiteLLMError,
    LiteLLMRefused,
    LiteLLMUnavailable,
    MasterKeyRefused,
    NoDatabase,
)
from services.auth.provisioning.models import Budget
from tests.doubles.litellm_admin import Fault, LiteLLMAdminDouble, broken, busy, hang, html
from tests.services.auth.provisioning.conftest import World

AI = Budget("mlpa:ai", 200_000_000, "1d")


@pytest.mark.parametrize("exists", [False, True])
async def test_a_budget_is_put_whatever_was_thought_of_its_existence(world: World, exists: bool) -> None:
    admin = world.admin()
    await admin.put_budget(AI, exists=exists)
    assert await admin.budgets(["mlpa:ai", "mlpa:other"]) == {"mlpa:ai": AI}
    more = Budget("mlpa:ai", 300_000_000, "7d")
    await admin.put_budget(more, exists=not exists)
    assert await admin.budgets(["mlpa:ai"]) == {"mlpa:ai": more}
    assert world.litellm.budgets["mlpa:ai"]["rpm_limit"] is None
    assert world.litellm.budgets["mlpa:ai"]["tpm_limit"] is None


@pytest.mark.parametrize("exists", [False, True])
async def test_a_customer_that_litellm_made_by_itself_is_given_its_budget(world: World, exists: bool) -> None:
    """LiteLLM adds a customer without a budget when it counts the spend of an end user that it does not know."""
    admin = world.admin()
    await admin.put_budget(AI, exists=False)
    world.litellm.customers["u:ai"] = {"user_id": "u:ai", "budget_id": None}
    await admin.put_customer("u:ai", "mlpa:ai", exists=exists)
    await admin.put_customer("v:ai", "mlpa:ai", exists=exists)
    assert world.litellm.budget_of("u:ai") == world.litellm.budget_of("v:ai") == "mlpa:ai"


async def test_a_customer_of_an_unknown_budget_is_refused(world: World) -> None:
    with pytest.raises(LiteLLMRefused, match="500"):
        await world.admin().put_customer("u:ai", "mlpa:nope", exists=False)


@pytest.mark.parametrize("fault", [html, busy, broken, hang])
async def test_a_litellm_gone_wrong_is_an_error_in_time(world: World, fault: Fault) -> None:
    world.litellm.fault = fault
    admin = world.admin(timeout=0.2)
    started = time.monotonic()
    for ask in (
        admin.budgets(["mlpa:ai"]),
        admin.put_budget(AI, exists=False),
        admin.put_customer("u:ai", "mlpa:ai", exists=True),
        admin.make_key("alias"),
        admin.spend(["u:ai"], date(2026, 1, 1), date(2026, 1, 2)),
    ):
        with pytest.raises(LiteLLMError):
            await ask
    assert time.monotonic() - started < 5


async def test_a_wrong_master_key_is_told_apart(world: World) -> None:
    with pytest.raises(MasterKeyRefused):
        await world.admin(key="sk-wrong").budgets(["mlpa:ai"])


@pytest.mark.parametrize("key", ["", "sk-wrong"])
async def test_a_litellm_without_a_database_is_told_apart_with_a_right_and_a_wrong_key(world: World, key: str) -> None:
    world.litellm.database = False
    admin = world.admin(key=key) if key else world.admin()
    with pytest.raises(NoDatabase):
        await admin.budgets(["mlpa:ai"])
    with pytest.raises(NoDatabase):
        await admin.make_key("alias")


async def test_the_first_instance_that_answers_is_asked_and_kept(world: World, unused_ports: Callable[[], int]) -> None:
    async with LiteLLMAdminDouble(fault=hang).running() as hanging:
        nobody = f"http://127.0.0.1:{unused_ports()}"
        admin = world.admin(nobody, hanging.url, world.litellm.url, timeout=0.3)
        await admin.put_budget(AI, exists=False)
        await admin.put_customer("u:ai", "mlpa:ai", exists=False)
        assert world.litellm.budget_of("u:ai") == "mlpa:ai"
        assert hanging.calls.total() == 1


async def test_no_instance_answers(world: World, unused_ports: Callable[[], int]) -> None:
    admin = world.admin(*(f"http://127.0.0.1:{unused_ports()}" for _ in range(2)))
    with pytest.raises(LiteLLMUnavailable, match="no connection"):
        await admin.budgets(["mlpa:ai"])


async def test_a_key_is_for_the_gateways_routes_and_all_models_without_a_budget(world: World) -> None:
    assert await world.admin().make_key("mlpa-gateway") == "sk-made-by-the-double-1"
    assert world.litellm.keys == [{"key_alias": "mlpa-gateway", "models": [], "allowed_routes": list(GATEWAY_ROUTES)}]


async def test_a_key_is_not_asked_for_twice_when_the_first_instance_may_have_made_it(world: World) -> None:
    async with LiteLLMAdminDouble(fault=hang).running() as hanging:
        with pytest.raises(LiteLLMUnavailable):
            await world.admin(hanging.url, world.litellm.url, timeout=0.2).make_key("mlpa-gateway")
    assert world.litellm.keys == []


async def test_spend_is_summed_over_days_and_pages(world: World) -> None:
    odd = "AAAA+/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:ai"
    world.litellm.page_size = 2
    world.litellm.spend = {
        odd: [("2026-01-01", 0.1, 1, 10, 20), ("2026-01-02", 0.2, 2, 30, 40), ("2026-01-03", 9.0, 9, 9, 9)],
        "u:ai": [("2025-12-31", 9.0, 9, 9, 9), ("2026-01-02", 0.000225, 1, 10, 20)],
    }
    users = [odd, "u:ai", *(f"{number}:ai" for number in range(60))]
    assert await world.admin().spend(users, date(2026, 1, 1), date(2026, 1, 2)) == {
        odd: Decimal("0.3"),
        "u:ai": Decimal("0.000225"),
    }
