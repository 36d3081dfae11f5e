"""Every request of a paid operation counts once, whichever part of the service refuses it."""

from __future__ import annotations

import json

import pytest

from services.gateway.errors import BudgetExceeded, InvalidModel
from services.gateway.relay.operation import permitted
from tests.services.gateway.conftest import Gateway, Models, RawClient, request_body
from tests.support.service_types import service_type
from tests.support.waiting import until

AVAILABILITY = "chat_availability_total"


def counted(gateway: Gateway, side: str, reason: str) -> tuple[float, float, float]:
    """Rejections of this reason, requests of this reason, and all requests."""
    return (
        gateway.metric("chat_request_rejections_total", model="other", reason=reason, service_type="none"),
        gateway.metric(AVAILABILITY, outcome=side, reason=reason),
        gateway.metric(AVAILABILITY),
    )


@pytest.mark.parametrize(
    ("headers", "body", "status", "reason"),
    [
        ({"Content-Encoding": "gzip"}, b"{}", 415, "invalid_request"),
        ({}, b"x" * (4 * 2**20), 413, "request_too_large"),
        ({"Authorization": "Bearer of nothing"}, b"{}", 401, "invalid_token"),
    ],
)
async def test_what_is_refused_before_the_first_step_counts(
    gateway: Gateway, headers: dict[str, str], body: bytes, status: int, reason: str
) -> None:
    assert (await gateway.read(body, headers=headers))[0] == status
    assert counted(gateway, "excluded", reason) == (1, 1, 1)


async def test_what_a_drain_refuses_counts(gateway: Gateway) -> None:
    gateway.frame.refuse_new()
    assert (await gateway.read())[0] == 503
    assert counted(gateway, "failure", "unavailable") == (1, 1, 1)


async def test_a_fault_of_ours_counts(gateway: Gateway) -> None:
    gateway.budgets.refuse = ZeroDivisionError()
    status, body, _ = await gateway.read()
    assert (status, json.loads(body)["error"]["code"]) == (500, "server_error")
    assert gateway.metric(AVAILABILITY, outcome="failure", reason="server_error") == 1
    assert gateway.metric(AVAILABILITY) == 1


async def test_other_paths_do_not_count(gateway: Gateway) -> None:
    async with gateway.session.post(f"{gateway.url}/v1/nothing") as answer:
        assert answer.status == 404
    assert gateway.metric(AVAILABILITY) == 0


async def test_a_client_that_leaves_with_half_a_body_counts_and_is_not_our_failure(gateway: Gateway) -> None:
    client = await RawClient.open(gateway.port, None)
    client.ask(request_body(), declare=100_000)
    await until(lambda: gateway.metric("in_progress_requests", endpoint="/v1/chat/completions") == 1)
    client.reset()
    await until(lambda: gateway.metric(AVAILABILITY) == 1)
    assert gateway.metric(AVAILABILITY, outcome="excluded") == 1


async def test_a_client_that_leaves_while_it_waits_for_its_admission_counts_as_our_failure(gateway: Gateway) -> None:
    gateway.budgets.answering.clear()
    client = await gateway.connect()
    await gateway.budgets.came.wait()
    client.reset()
    await until(lambda: gateway.metric(AVAILABILITY) == 1)
    assert gateway.metric(AVAILABILITY, outcome="failure", reason="abort_before_answer") == 1


async def test_a_refusal_is_noted_for_operators_and_names_no_model_that_a_client_invented(gateway: Gateway) -> None:
    gateway.budgets.refuse = BudgetExceeded()
    await gateway.read(headers={"X-Request-ID": "spent"})
    await gateway.read({"model": "unknown-secret"}, headers={"X-Request-ID": "invented"})
    await gateway.read(headers={"Authorization": "Bearer of nothing", "X-Request-ID": "nobody"})
    assert gateway.refusals.noted == [
        ("budget_exceeded", {"request_id": "spent", "user_id": "uid:ai", "service_type": "ai", "model": "double"}),
        ("invalid_model", {"request_id": "invented", "user_id": "uid:ai", "service_type": "ai", "model": None}),
        ("invalid_token", {"request_id": "nobody", "user_id": None, "service_type": "none", "model": None}),
    ]


def test_a_model_that_litellm_has_and_the_service_type_may_not_use_is_named_for_operators() -> None:
    row = service_type(models=("others",))
    with pytest.raises(InvalidModel) as caught:
        permitted("gpt", row, Models())
    assert (caught.value.model, caught.value.why) == ("gpt", f"{row.name} may not use this model.")
    assert "gpt" not in caught.value.message
