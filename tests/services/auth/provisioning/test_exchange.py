"""A token exchange makes a customer, and never waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.doubles.litellm_admin import MASTER_KEY, Fault, LiteLLMAdminDouble, broken, busy, hang, html
from tests.services.auth.conftest import UID, StartAuth
from tests.support.waiting import until


def settings(litellm: LiteLLMAdminDouble, **more: Any) -> dict[str, Any]:
    return {"litellm_provision_users": True, "litellm_api_base": litellm.url, "master_key": MASTER_KEY, **more}


async def test_the_first_exchange_makes_the_customer_with_the_budget_of_its_row(start_auth: StartAuth) -> None:
    async with LiteLLMAdminDouble().running() as litellm:
        auth = await start_auth(**settings(litellm, litellm_budget_factor=3))
        for _ in range(3):
            status, _ = await auth.exchange(auth.fxa_token())
            assert status == 200
        await until(lambda: litellm.budget_of(f"{UID}:ai") == "mlpa:ai")
        assert litellm.budgets["mlpa:ai"]["max_budget"] == 0.3
        assert litellm.calls["/customer/new"] == 1


@pytest.mark.parametrize("fault", [html, busy, broken, hang])
async def test_an_exchange_is_as_quick_and_good_while_litellm_is_not(start_auth: StartAuth, fault: Fault) -> None:
    async with LiteLLMAdminDouble(fault=fault).running() as litellm:
        auth = await start_auth(**settings(litellm))
        started = time.monotonic()
        for number in range(5):
            status, _ = await auth.exchange(auth.fxa_token(uid=f"{number:032x}"))
            assert status == 200
        assert time.monotonic() - started < 4  # a hanging LiteLLM would take five seconds of each
        status, _, _ = await auth.ask("GET", "/health/readiness")
        assert status == 200


async def test_nothing_is_asked_where_users_are_not_provisioned(
    start_auth: StartAuth, unused_ports: Callable[[], int]
) -> None:
    async with LiteLLMAdminDouble().running() as litellm:
        auth = await start_auth(**settings(litellm, litellm_provision_users=False))
        status, _ = await auth.exchange(auth.fxa_token())
        assert status == 200
        assert litellm.calls.total() == 0
    auth = await start_auth(**settings(litellm, litellm_api_base=f"http://127.0.0.1:{unused_ports()}"))
    status, _ = await auth.exchange(auth.fxa_token())
    assert status == 200
