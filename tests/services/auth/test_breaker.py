"""When the circuit breaker opens, and how it closes again."""

from __future__ import annotations

import asyncio

import pytest

from services.auth.breaker import Breaker, BreakerOpen, State
from tests.support.clock import Clock


class Failure(Exception):
    def __init__(self, retry_after: float | None = None) -> None:
        self.retry_after = retry_after


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=3, counts=(Failure,), clock=clock, first=5, longest=12, longest_asked=100)


def fail(breaker: Breaker, error: BaseException | None = None) -> None:
    error = error or Failure()
    with pytest.raises(type(error)), breaker.call():
        raise error


def succeed(breaker: Breaker) -> None:
    with breaker.call():
        pass


def refused_for(breaker: Breaker) -> float:
    with pytest.raises(BreakerOpen) as caught, breaker.call():
        pytest.fail("it was let through")
    return caught.value.retry_after


def test_failures_in_a_row_open_it(breaker: Breaker) -> None:
    fail(breaker)
    fail(breaker)
    succeed(breaker)
    fail(breaker)
    fail(breaker)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert breaker.state is State.OPEN
    assert refused_for(breaker) == 5


def test_an_error_that_is_no_outage_counts_as_an_answer(breaker: Breaker) -> None:
    for _ in range(5):
        fail(breaker)
        fail(breaker)
        fail(breaker, KeyError())
    assert breaker.state is State.CLOSED


def test_after_its_time_one_probe_goes_through_and_closes_it(breaker: Breaker, clock: Clock) -> None:
    for _ in range(3):
        fail(breaker)
    clock.now += 4.9
    assert refused_for(breaker) == pytest.approx(0.1)
    clock.now += 0.2
    with breaker.call():
        assert breaker.state is State.HALF_OPEN
        assert refused_for(breaker) == 1
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert breaker.state is State.CLOSED


def test_each_failed_probe_doubles_the_wait_up_to_a_bound(breaker: Breaker, clock: Clock) -> None:
    for _ in range(3):
        fail(breaker)
    waits = []
    for _ in range(20):
        clock.now += refused_for(breaker)
        fail(breaker)
        waits.append(refused_for(breaker))
    assert waits[:2] == [10, 12]
    assert set(waits[1:]) == {12}
    clock.now += 12
    succeed(breaker)
    for _ in range(3):
        fail(breaker)
    assert refused_for(breaker) == 5


def test_a_wait_that_is_asked_for_opens_it_at_once_for_that_long(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, Failure(retry_after=42))
    assert refused_for(breaker) == 42
    clock.now += 42
    fail(breaker, Failure(retry_after=1e9))
    assert refused_for(breaker) == 100


def test_a_cancelled_probe_leaves_the_next_call_to_probe(breaker: Breaker, clock: Clock) -> None:
    for _ in range(3):
        fail(breaker)
    clock.now += 5
    fail(breaker, asyncio.CancelledError())
    assert breaker.state is State.OPEN
    succeed(breaker)
    assert breaker.state is State.CLOSED


def test_answers_to_calls_from_before_it_opened_change_nothing(breaker: Breaker) -> None:
    late_success, late_failure = breaker.call(), breaker.call()
    late_success.__enter__()
    late_failure.__enter__()
    for _ in range(3):
        fail(breaker)
    late_success.__exit__(None, None, None)
    assert breaker.state is State.OPEN
    error = Failure(retry_after=90)
    assert not late_failure.__exit__(Failure, error, None)
    assert refused_for(breaker) == 5


def test_every_change_is_told(clock: Clock) -> None:
    states: list[State] = []
    breaker = Breaker(failures=1, counts=(Failure,), clock=clock, on_change=states.append)
    fail(breaker)
    clock.now += 5
    fail(breaker)
    clock.now += 10
    succeed(breaker)
    succeed(breaker)
    assert states == [State.OPEN, State.HALF_OPEN, State.OPEN, State.HALF_OPEN, State.CLOSED]
