"""Every request of a paid operation counts once, whichever part of the service refuses it."""

from __future__ import annotations

import json

import pytest

from tests.services.gateway.conftest import Gateway, RawClient, request_body
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
